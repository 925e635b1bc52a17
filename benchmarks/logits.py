"""Which logits does a model give, at every position of a text? For comparisons with other programs, number by number.

    logits.py --model F.gguf --ids 1,2,3 --out X.npy
    logits.py --model F.gguf --ids 1,2,3 --out X.npy --rpc 127.0.0.1:50052 --chunk 7

Writes float32 [T, V]. Takes token ids, so the file needs no tokenizer. The bits do not depend on --rpc, --workers,
--threads or --chunk; saying so is what this is for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import loaded_broker, parser, run_main, score, worker_addresses, write_json

from ollama_zmq.errors import RequestError


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--ids", required=True, metavar="1,2,3", help="the token ids")
    made.add_argument("--chunk", type=int, default=512, help="tokens per pass (default 512)")
    made.add_argument("--out", type=Path, required=True, metavar="X.npy")
    given = made.parse_args()
    token_ids = parse_ids(given.ids)
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


def parse_ids(text: str) -> list[int]:
    """``1,2,3`` as integers. Raises RequestError naming what is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not part.isdigit()]
    if wrong or not parts:
        raise RequestError(f"--ids {text!r}: {wrong[0]!r} is not a token id" if wrong else "--ids is empty")
    return [int(part) for part in parts]


if __name__ == "__main__":
    run_main(main)
