"""Requests become sequences here, or are refused: everything a caller can get wrong is found before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ollama_zmq.engine.requests import GenerationRequest, ScoreRequest
from ollama_zmq.engine.sampler import Sampler
from ollama_zmq.engine.sequence import Generation, Scoring
from ollama_zmq.engine.window import cut_prompt, fits, head_size
from ollama_zmq.errors import CapacityError, ContextOverflow, RequestError
from ollama_zmq.text.tokenizer import Tokenizer
from ollama_zmq.units import human_bytes


def open_generation(
    request: GenerationRequest,
    *,
    tokenizer: Tokenizer,
    vocab_size: int,
    num_ctx: int,
    random_seed: Callable[[], int],
) -> Generation:
    """A sequence that continues the prompt, cut to the context where that is allowed.

    Raises:
        RequestError: no tokens, a token id outside the vocabulary, or an option that means nothing.
        ContextOverflow: the prompt leaves no room in the context and must not be cut or shifted.
    """
    options = request.options
    check_token_ids(request.token_ids, vocab_size)
    length = len(request.token_ids)
    keep = head_size(options.num_keep, prompt_tokens=length, adds_bos=tokenizer.add_bos, num_ctx=num_ctx)
    if not fits(length, num_ctx) and not (request.truncate and request.shift):
        raise ContextOverflow(
            f"prompt of {length} tokens does not fit num_ctx={num_ctx}, which takes {num_ctx - 1}: "
            f"raise num_ctx to {length + 1} or more, shorten the prompt, or allow truncate and shift",
            prompt_tokens=length,
            num_ctx=num_ctx,
        )
    seed = random_seed() if options.seed == -1 else options.seed
    return Generation(
        request.request_id,
        cut_prompt(request.token_ids, keep, num_ctx),
        request=request,
        tokenizer=tokenizer,
        sampler=Sampler(options, seed=seed, num_ctx=num_ctx),
        num_ctx=num_ctx,
        keep=keep,
        read_ahead=request.read_ahead,
    )


def open_scoring(request: ScoreRequest, *, vocab_size: int, num_ctx: int) -> Scoring:
    """A sequence that collects the logits of every position.

    Raises:
        RequestError: no tokens, a token id outside the vocabulary, or a chunk of none.
        ContextOverflow: more tokens than the context has slots.
        CapacityError: the logits do not fit this machine's memory.
    """
    check_token_ids(request.token_ids, vocab_size)
    T = len(request.token_ids)
    if request.chunk < 1:
        raise RequestError(f"chunk={request.chunk}: starts at 1", chunk=request.chunk)
    if num_ctx < T:
        raise ContextOverflow(
            f"{T} tokens do not fit num_ctx={num_ctx}: raise num_ctx to {T}", tokens=T, num_ctx=num_ctx
        )
    try:
        logits = np.empty((T, vocab_size), np.float32)
    except MemoryError:
        nbytes = human_bytes(4 * T * vocab_size)
        raise CapacityError(f"logits of {T} tokens need {nbytes}: score fewer tokens at once", tokens=T) from None
    return Scoring(request.request_id, list(request.token_ids), request=request, logits=logits)


def check_token_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    """Refuse an empty prompt and ids that name no token.

    Raises:
        RequestError: naming the first bad one.
    """
    if not token_ids:
        raise RequestError("token_ids is empty: there must be at least one token to go on from")
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        i = next(i for i, token_id in enumerate(token_ids) if not 0 <= token_id < vocab_size)
        raise RequestError(f"token_ids[{i}]={token_ids[i]}: the vocabulary has {vocab_size}", index=i)
