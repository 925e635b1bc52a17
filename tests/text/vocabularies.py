"""Headers of small made-up vocabularies."""

from __future__ import annotations

from typing import Any

from ollama_zmq.text.bpe import BYTE_OF_CHARACTER

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_pairs(*control: str, pre: str = "gpt-2") -> dict[str, Any]:
    """All bytes, a few merges, ``<think>`` (user defined), ``<|im_end|>`` and *control* tokens."""
    merges = ["h i", "Ġ a", "Ġ Ġ", "ð Ł", "ðŁ ĺ"]
    plain = [*BYTE_OF_CHARACTER, *(merge.replace(" ", "") for merge in merges)]
    special = ["<think>", "<|im_end|>", *control]
    kinds = [NORMAL] * len(plain) + [USER_DEFINED] + [CONTROL] * (1 + len(control))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*plain, *special],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(plain) + 1,
        "tokenizer.ggml.eos_token_id": len(plain) + 1,
    }


def sentence_pieces(*control: str) -> dict[str, Any]:
    """A SentencePiece vocabulary: bytes, some letters and pairs with scores, and *control* tokens."""
    plain = ["▁", "a", "b", "▁a", "ab", "▁ab", "ba", "▁▁", "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *plain, *control]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(plain), *[CONTROL] * len(control)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(plain) + len(control))],
    }
