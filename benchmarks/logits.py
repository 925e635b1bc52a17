"""Which logits does a model give, at every position of a text? For comparisons with other programs, number by number.

    logits.py --model F.gguf --ids 1,2,3 --out X.npy
    logits.py --model F.gguf --ids 1,2,3 --out X.npy --rpc 127.0.0.1:50052 --chunk 7
    logits.py --model F.gguf --ids 1,2,3 --out X.npy --embeddings

Writes float32 [T, V], or with --embeddings the hidden states after the last norm, float32 [T, D]. Takes token ids, so
the file needs no tokenizer. The bits do not depend on --rpc, --workers, --threads or --chunk; saying so is what this is
for.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from common import loaded_broker, parser, resolve_model, run_main, score, worker_addresses, write_json

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.devices.registry import open_device
from ollama_zmq.errors import RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.ops.program import Program, TensorSpec, verify
from ollama_zmq.ops.registry import op_digests
from ollama_zmq.ops.state import PAGE_SLOTS


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--ids", required=True, metavar="1,2,3", help="the token ids")
    made.add_argument("--chunk", type=int, default=512, help="tokens per pass (default 512)")
    made.add_argument("--embeddings", action="store_true", help="hidden states after the last norm; on this machine")
    made.add_argument("--out", type=Path, required=True, metavar="X.npy")
    given = made.parse_args()
    token_ids = parse_ids(given.ids)
    if given.embeddings:
        if given.rpc or given.workers:
            raise RequestError("--embeddings runs on this machine alone: leave out --rpc and --workers")
        np.save(given.out, embeddings(resolve_model(given.model)[0], token_ids, given.threads))
        record = {"model": given.model, "threads": given.threads, "ids": token_ids, "embeddings": True}
        write_json(given.json, [record])
        return
    with (
        worker_addresses(given.rpc, given.workers, given.threads) as workers,
        loaded_broker(
            given.model, workers, threads=given.threads, num_ctx=max(len(token_ids), 64), num_batch=given.chunk
        ) as session,
    ):
        logits = score(session, token_ids, given.chunk)
    np.save(given.out, logits)
    record = {"model": given.model, "workers": workers, "threads": given.threads, "chunk": given.chunk}
    write_json(given.json, [{**record, "ids": token_ids, "argmax": logits.argmax(axis=1).tolist()}])


def embeddings(path: Path, token_ids: list[int], threads: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Hidden states after the last norm, float32 [T, D], of all *token_ids* in one pass.

    Raises:
        OllamaZmqError: the model cannot be read, or has no such token.
    """
    n_tokens, n_pages = len(token_ids), -(-len(token_ids) // PAGE_SLOTS)
    with ExitStack() as stack:
        network = Network(stack.enter_context(open_gguf(path)), num_ctx=n_tokens)
        if max(token_ids) >= network.vocab_size:
            raise RequestError(f"--ids: {max(token_ids)} is no token: there are {network.vocab_size}")
        device = open_device("cpu", threads=threads or None, budget=Budget(psutil.virtual_memory().available))
        stack.callback(device.close)
        program = before_head(network)
        weights = {}
        for spec in program.weights:
            weights[spec.name] = device.load_weight(spec, network.gguf.data(spec.name))
            stack.callback(weights[spec.name].close)
        executable = device.compile(verify(program), weights, kv_pages=n_pages, max_tokens=n_tokens)
        stack.callback(executable.close)
        step = Step.of([n_tokens], [0], [range(n_pages)], range(n_tokens))
        return np.array(executable.run(np.array(token_ids, np.int32), step))


def before_head(network: Network) -> Program:
    """The whole model up to what its output matrix is given: token ids [T] -> hidden state [R, D]."""
    whole = network.whole_program()
    last = max(i for i, call in enumerate(whole.calls) if call.args.get("weight") == network.output.name)
    calls = whole.calls[:last]
    read = {name for call in calls for name in call.args.values()}
    return msgspec.structs.replace(
        whole,
        outputs=(TensorSpec(whole.calls[last].args["x"], "float32", ("R", network.hidden_size)),),
        weights=tuple(weight for weight in whole.weights if weight.name in read),
        calls=calls,
        ops=op_digests(call.op for call in calls),
    )


def parse_ids(text: str) -> list[int]:
    """``1,2,3`` as integers. Raises RequestError naming what is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdigit()]
    if wrong or not parts:
        raise RequestError(f"--ids {text!r}: {wrong[0]!r} is not a token id" if wrong else "--ids is empty")
    return [int(part) for part in parts]


if __name__ == "__main__":
    run_main(main)
