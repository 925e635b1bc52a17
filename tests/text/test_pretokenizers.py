"""Every pre-tokenizer keeps every byte, and none can be made slow."""

from itertools import pairwise

import pytest

from ollama_zmq.text.bpe import BYTE_OF_CHARACTER
from ollama_zmq.text.pretokenizers import PRE_TOKENIZERS, RULES
from ollama_zmq.text.tokenizer import load_tokenizer
from tests.text.vocabularies import byte_pairs

N = 20_000
BYTE_LEVEL = [names.split()[0] for names, rules in RULES.items() if rules.byte_level]
MONOTONOUS = [" " * N + "x", "\n" * N + "x", "a" * N, "1" * N, "!" * N, "'" * N, "A" * N + "1", "中" * N, "\u0301" * N]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_long_runs_take_linear_time_and_come_back(pre: str) -> None:
    tokenizer = load_tokenizer(byte_pairs(pre=pre))
    for text in MONOTONOUS:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False, parse_special=False)) == text


def test_no_name_stands_for_two_rules() -> None:
    assert sum(len(names.split()) for names in RULES) == len(PRE_TOKENIZERS)


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'll pay 1234  now", ["I", "'ll", " pay", " 1234", " ", " now"]),
        ("smollm", "x 12", ["x", " ", "1", "2"]),
        ("llama-bpe", "I'LL pay 1234!\n", ["I", "'LL", " pay", " ", "123", "4", "!\n"]),
        ("qwen2", "v2.0", ["v", "2", ".", "0"]),
        ("gpt-4o", "camelCase's", ["camel", "Case's"]),
        ("deepseek-v3", "12345 中文", ["123", "45", " ", "中文"]),
        ("falcon", "12345", ["123", "45"]),
        ("tiny_aya", "a 1234567, 89", ["a", " ", "1", "234", "567", ",", " ", "89"]),
        ("kimi-k2", "hi中文's 1234", ["hi", "中文", "'s", " ", "123", "4"]),
    ],
)
def test_words_are_cut_where_the_model_expects(pre: str, text: str, words: list[str]) -> None:
    metadata = byte_pairs(pre=pre)
    metadata["tokenizer.ggml.merges"] = merges = merges_of(words)
    known = metadata["tokenizer.ggml.tokens"]
    known += [token for merge in merges if (token := merge.replace(" ", "")) not in known]
    del metadata["tokenizer.ggml.token_type"]
    tokenizer = load_tokenizer(metadata)
    token_ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert [tokenizer.piece(token_id).decode() for token_id in token_ids] == words


def merges_of(words: list[str]) -> list[str]:
    """Merges that make each of *words* one token, and every neighbouring pair of them too, were it not for the cut."""
    letters = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    spelled = ["".join(letters[byte] for byte in word.encode()) for word in words]
    merges = [f"{word[:n]} {word[n]}" for word in spelled for n in range(1, len(word))]
    merges += [f"{left} {right}" for left, right in pairwise(spelled)]
    return list(dict.fromkeys(merges))
