"""Which machine holds which layers, and what a token costs there: ``python examples/where_it_runs.py MODEL``."""

import json
import os
import sys
import urllib.request
from typing import Any

SERVER = f"http://{os.environ.get('OLLAMA_HOST') or '127.0.0.1:11434'}"


def call(path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that the server answers; *body* makes it a POST."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(SERVER + path, data)) as answer:
        return json.load(answer)


def main(model: str) -> None:
    """Let the model say a few words, then print a line for each of its stages."""
    call("/api/generate", {"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 16}})
    for stage in call("/api/cluster")["models"][0]["stages"]:
        layers = f"layers {stage['first_layer']}-{stage['last_layer']}" if stage["part"] == "layers" else stage["part"]
        times = {part: stage["latency"][part]["p50_us"] for part in ("compute", "wire", "queue")}
        print(f"{stage['worker']:24}{layers:16}" + "  ".join(f"{part} {us:.0f} us" for part, us in times.items()))


if __name__ == "__main__":
    main(sys.argv[1])
