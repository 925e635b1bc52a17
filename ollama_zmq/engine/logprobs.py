"""Log-probabilities of tokens, from the logits as the model gave them: before penalties, filters and temperature."""

from __future__ import annotations

from math import log

import numpy as np
import numpy.typing as npt

from ollama_zmq.engine.filters import largest, total_weight
from ollama_zmq.engine.requests import TokenLogprob
from ollama_zmq.text.tokenizer import Tokenizer


def token_logprob(tokenizer: Tokenizer, logits: npt.NDArray[np.float32], token_id: int, top: int) -> TokenLogprob:
    """The natural-log probability of *token_id* under float32 [V], with the *top* likeliest beside it."""
    ids, values = largest(logits, max(top, 1))
    log_total = float(values[0]) + log(total_weight(logits, float(values[0])))
    likeliest = zip(ids[:top].tolist(), values[:top].tolist(), strict=True)
    others = tuple(_named(tokenizer, other, logit - log_total) for other, logit in likeliest)
    return _named(tokenizer, token_id, float(logits[token_id]) - log_total, others)


def _named(tokenizer: Tokenizer, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    data = tokenizer.piece(token_id)
    return TokenLogprob(data.decode("utf-8", "replace"), data, logprob, top)
