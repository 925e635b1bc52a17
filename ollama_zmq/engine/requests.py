"""What a client asks of a loaded model, and what it gets back, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats.options import Options


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Continue a prompt.

    Attributes:
        request_id: unique among the requests of this process.
        token_ids: the prompt, templated, tokenized and with its first special token.
        options: sampling options; ``stop``, ``num_predict``, ``num_keep`` and ``seed`` among them.
        truncate: cut a prompt that is longer than the context by Ollama's rule; otherwise refuse it.
        shift: when the context is full, forget the older half and go on; otherwise finish with "length".
        logprobs: send log-probabilities with each token; ``top_logprobs`` of the likeliest tokens besides.
        read_ahead: chunks that may be unread before it pauses; 0 for a reader that never says what it has read.
    """

    request_id: str
    token_ids: tuple[int, ...]
    options: Options
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    read_ahead: int = 0


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Logits of every position of ``token_ids``, teacher-forced, ``chunk`` tokens per pass."""

    request_id: str
    token_ids: tuple[int, ...]
    chunk: int = 512


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its natural-log probability before temperature and penalties.

    Attributes:
        token: its text; ``data``: its bytes, which may be part of a character.
        top: the likeliest tokens at this place, best first.
    """

    token: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class TextChunk(msgspec.Struct, frozen=True):
    """Text that is safe to show. ``token_ids`` are those that were generated since the last chunk."""

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A request is done; nothing follows.

    Attributes:
        reason: "stop" (end token or stop string) or "length".
        context: prompt and output tokens, for Ollama's ``context`` field.
        prompt_tokens: tokens of the prompt after truncation, cached ones included.
        prefill_s, decode_s: from admission to the first token, and from there until the text of the last was made.
        drafted, accepted: tokens that were guessed, and those of them that were right.
    """

    request_id: str
    reason: str
    context: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    prefill_s: float
    decode_s: float
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """Answer to a :class:`ScoreRequest`. ``logits``: float32 [T, V]."""

    request_id: str
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request ended with an error; nothing follows."""

    request_id: str
    error: OllamaZmqError


Output = TextChunk | Finished | Scored | RequestFailed
Request = GenerationRequest | ScoreRequest


class Microbatch(msgspec.Struct, frozen=True):
    """The tokens of some sequences that travel together once through the stages.

    Plain tuples, because they go into a message as they are: making arrays of them costs 30 us a token.

    Attributes:
        id: counts up; never reused by one engine.
        token_ids: int32 [T].
        lengths: tokens per sequence, [B]; their sum is T.
        positions: absolute position of each sequence's first token, [B].
        pages: the KV pages of each sequence, [B][...], in order.
        rows: the rows whose logits are wanted, [R].
        prompt_tokens: how many of the tokens are of sequences that are prefilled.
    """

    id: int
    token_ids: npt.NDArray[np.int32]
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    prompt_tokens: int = 0

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one token, the one that was sampled last: no prompt, and no draft."""
        return not self.prompt_tokens and len(self.token_ids) == len(self.lengths)
