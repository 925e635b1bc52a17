"""How well does a model predict a text? Perplexity, measured as llama.cpp's tool does, so that figures compare.

    perplexity.py --model F.gguf --text wiki.test.raw --ctx 512 --chunks 4 [--rpc LIST | --workers N]

The text is cut into chunks of --ctx tokens, each begins with BOS where the model wants one, and only the second half of
each counts, because there every token has at least half a context behind it:

    ppl = exp(-mean log p(token[i + 1] | token[0..i]))     ctx/2 <= i < ctx - 1
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from common import loaded_broker, parser, print_table, run_main, score, worker_addresses, write_json

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.text.tokenizer import Tokenizer


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--text", type=Path, required=True, metavar="FILE")
    made.add_argument("--ctx", type=int, default=512, help="tokens of one chunk (default 512)")
    made.add_argument("--chunks", type=int, default=4, help="how many chunks, 0 for all (default 4)")
    given = made.parse_args()
    text = given.text.read_text(encoding="utf-8")
    with (
        worker_addresses(given.rpc, given.workers, given.threads) as workers,
        loaded_broker(given.model, workers, threads=given.threads, num_ctx=given.ctx) as session,
    ):
        losses: list[float] = []
        rows = []
        if session.model.tokenizer is None:
            raise ModelFileError(f"{given.model}: the file has no vocabulary, so it cannot read a text")
        for i, chunk in enumerate(cut(session.model.tokenizer, text, given.ctx, given.chunks)):
            losses += token_losses(score(session, chunk, 512), chunk)
            rows.append([i + 1, len(losses), f"{math.exp(np.mean(losses)):.4f}"])
    print_table(["chunk", "tokens", "perplexity"], rows)
    about = {"model": given.model, "workers": workers, "text": given.text.name, "ctx": given.ctx, "chunks": len(rows)}
    write_json(given.json, [{**about, "tokens": len(losses), "perplexity": math.exp(np.mean(losses))}])


def cut(tokenizer: Tokenizer, text: str, n_context: int, n_chunks: int) -> list[list[int]]:
    """Return chunks of *n_context* token ids.

    Raises:
        RequestError: the text is shorter than one chunk.
    """
    token_ids = tokenizer.encode(text, add_special=True, parse_special=False)
    count = len(token_ids) // n_context
    if count == 0:
        raise RequestError(f"the text has {len(token_ids)} tokens, a chunk needs {n_context}: use a smaller --ctx")
    chunks = [token_ids[i * n_context : (i + 1) * n_context] for i in range(min(n_chunks or count, count))]
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        for chunk in chunks:
            chunk[0] = tokenizer.bos_id
    return chunks


def token_losses(logits: np.ndarray[Any, np.dtype[np.float32]], token_ids: list[int]) -> list[float]:
    """Return -log p of each token of the second half, given logits float32 [T, V] of all."""
    first = len(token_ids) // 2
    wide = logits[first:-1].astype(np.float64)
    highest = wide.max(axis=1)
    log_sum = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=1))
    chosen = wide[np.arange(len(wide)), token_ids[first + 1 :]]
    return [float(loss) for loss in log_sum - chosen]


if __name__ == "__main__":
    run_main(main)
