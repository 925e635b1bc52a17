#!/usr/bin/env bash
# Two workers and a server on this machine, one answer, and everything stopped again: examples/two_workers.sh MODEL
# Ports: 50052 and 50053 for the workers, 11500 for the server, unless WORKER_PORTS="A B" and SERVER_PORT say otherwise.
set -euo pipefail
model=${1:?usage: two_workers.sh MODEL}
read -r first second <<<"${WORKER_PORTS:-50052 50053}"
export OLLAMA_HOST=127.0.0.1:${SERVER_PORT:-11500}
logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$logs"' EXIT

ollama rpc-server -p "$first" -t 1 >"$logs/first" 2>&1 &
ollama rpc-server -p "$second" -t 1 >"$logs/second" 2>&1 &
OLLAMA_RPC_SERVERS="127.0.0.1:$first,127.0.0.1:$second" ollama serve >"$logs/server" 2>&1 &
for _ in $(seq 100); do
    ollama list >/dev/null 2>&1 && break
    sleep 0.2
done

ollama run "$model" "Why is the sky blue?"
ollama ps -v
