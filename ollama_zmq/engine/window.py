"""Context shift: which tokens stay when a sequence does not fit its context. Ollama's rules.

    keep     num_keep tokens at the head, and the BOS token where the tokenizer adds one; all of the prompt when
             num_keep is negative; never more than num_ctx - 1, so that something can go
    drop     max((num_ctx - keep) / 2, 1)

A prompt of more than num_ctx - 1 tokens is cut to its head of ``keep`` tokens and a tail, num_ctx - drop together.
A sequence that has grown beyond num_ctx loses the ``drop`` tokens behind its head. Positions start again from
the cut: what follows it is prefilled anew, so that the text goes on as if these tokens had been the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence


def head_size(num_keep: int, *, prompt_tokens: int, adds_bos: bool, num_ctx: int) -> int:
    """How many tokens at the head are never dropped."""
    keep = prompt_tokens if num_keep < 0 else num_keep + adds_bos
    return min(keep, num_ctx - 1)


def drop_size(keep: int, num_ctx: int) -> int:
    """How many tokens go at once."""
    return max((num_ctx - keep) // 2, 1)


def fits(prompt_tokens: int, num_ctx: int) -> bool:
    """Whether a prompt leaves room for one token to come."""
    return prompt_tokens <= num_ctx - 1


def cut_prompt(token_ids: Sequence[int], keep: int, num_ctx: int) -> list[int]:
    """The head and the tail of a prompt that does not fit; *token_ids* as they are when they do."""
    if fits(len(token_ids), num_ctx):
        return list(token_ids)
    tail = num_ctx - drop_size(keep, num_ctx) - keep
    return [*token_ids[:keep], *token_ids[len(token_ids) - tail :]]


def shifted(token_ids: Sequence[int], keep: int, num_ctx: int) -> list[int]:
    """*token_ids*, more than ``num_ctx`` of them, without those that are dropped behind the head."""
    return [*token_ids[:keep], *token_ids[keep + drop_size(keep, num_ctx) :]]
