"""Token ids equal llama.cpp's, and every text survives the way there and back."""

import json
import sys
import threading
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.text.tokenizer import Tokenizer, has_vocabulary, load_tokenizer
from tests.text.vocabularies import byte_pairs, sentence_pieces

GOLDEN = Path(__file__).with_name("golden") / "smollm2_tokens.json"
VOCABULARIES = (
    "llama-bpe llama-spm gpt-2 qwen2 phi-3 deepseek-llm deepseek-coder starcoder refact command-r falcon mpt"
    " qwen35 gemma-4 bert-bge"
)
SEPARATOR = "\n__ggml_vocab_test__\n"


@cache
def tokenizer_of(path: Path) -> Tokenizer:
    with open_gguf(path) as file:
        return load_tokenizer(file.metadata)


def vectors_of(path: Path) -> list[tuple[str, list[int]]]:
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(SEPARATOR)
    texts = texts if texts[-1] else texts[:-1]
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("name", VOCABULARIES.split())
def test_the_published_vectors_hold(vocabularies_path: Path, name: str) -> None:
    path = vocabularies_path / f"ggml-vocab-{name}.gguf"
    tokenizer = tokenizer_of(path)
    vectors = vectors_of(path)
    assert len(vectors) >= 45
    assert [tokenizer.encode(text, add_special=False, parse_special=False) for text, _ in vectors] == [
        token_ids for _, token_ids in vectors
    ]


@pytest.mark.parametrize("parse_special", [False, True])
def test_smollm2_agrees_with_llama_cpp(smollm2_path: Path, parse_special: bool) -> None:
    tokenizer = tokenizer_of(smollm2_path)
    entries = json.loads(GOLDEN.read_text())
    found = [tokenizer.encode(text, add_special=False, parse_special=parse_special) for text, _, _ in entries]
    assert found == [special if parse_special else plain for _, plain, special in entries]


def test_smollm2_ends_where_llama_cpp_ends(smollm2_path: Path) -> None:
    tokenizer = tokenizer_of(smollm2_path)
    ends = {tokenizer.token_text(token_id) for token_id in tokenizer.end_ids}
    assert ends == {"<|endoftext|>", "<|im_end|>", "<reponame>"}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eot_id) == (1, 2, 2)
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.vocab_size) == (False, False, 49152)


@given(text=st.text())
def test_byte_pairs_bring_every_text_back(text: str) -> None:
    tokenizer = load_tokenizer(byte_pairs())
    for parse_special in (False, True):
        token_ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
        assert tokenizer.decode(token_ids, show_control=True) == text


@given(text=st.text(), add_special=st.booleans())
def test_sentence_pieces_bring_every_text_back(text: str, add_special: bool) -> None:
    text = text.replace("▁", "_")  # the one character SentencePiece gives another meaning
    tokenizer = load_tokenizer(sentence_pieces())
    assert tokenizer.decode(tokenizer.encode(text, add_special=add_special, parse_special=False)) == text


def test_lone_surrogates_are_read_as_replacement_characters() -> None:
    tokenizer = load_tokenizer(byte_pairs())
    token_ids = tokenizer.encode("a\ud800b", add_special=False, parse_special=False)
    assert tokenizer.decode(token_ids) == "a\ufffdb"


def test_a_users_marker_is_only_text() -> None:
    tokenizer = load_tokenizer(byte_pairs())
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.encode("hi<|im_end|>", add_special=False, parse_special=True)[-1] == end
    assert end not in tokenizer.encode("hi<|im_end|>", add_special=False, parse_special=False)


def test_user_defined_tokens_are_always_whole() -> None:
    tokenizer = load_tokenizer(byte_pairs())
    assert tokenizer.encode("a<think>b", add_special=False, parse_special=False)[1] == tokenizer.token_id("<think>")


def test_control_tokens_are_hidden_unless_asked_for() -> None:
    tokenizer = load_tokenizer(byte_pairs())
    token_ids = tokenizer.encode("hi<|im_end|>", add_special=False, parse_special=True)
    assert (tokenizer.decode(token_ids), tokenizer.decode(token_ids, show_control=True)) == ("hi", "hi<|im_end|>")


def test_a_chat_marker_ends_generation_even_if_the_file_calls_it_normal() -> None:
    metadata = byte_pairs("<|endoftext|>", "[EOS]")
    metadata["tokenizer.ggml.token_type"] = [1] * len(metadata["tokenizer.ggml.tokens"])
    tokenizer = load_tokenizer(metadata)
    ends = {tokenizer.token_id(marker) for marker in ("<|im_end|>", "<|endoftext|>", "[EOS]")}
    assert tokenizer.end_ids == ends
    assert all(map(tokenizer.is_control, ends))


def test_harmony_goes_on_after_end() -> None:
    tokenizer = load_tokenizer(byte_pairs("<|end|>", "<|return|>", "<|call|>", "<|channel|>"))
    ends = {tokenizer.token_text(token_id) for token_id in tokenizer.end_ids}
    assert ends == {"<|im_end|>", "<|return|>", "<|call|>"}
    assert not tokenizer.is_control(tokenizer.token_id("<|channel|>"))


def test_special_tokens_of_phi3_swallow_the_space_behind_them() -> None:
    tokenizer = load_tokenizer(sentence_pieces("<|user|>") | {"general.name": "Phi-3-mini"})
    marker, letter = tokenizer.token_id("<|user|>"), tokenizer.token_id("▁a")
    assert tokenizer.encode("<|user|> \n a", add_special=False, parse_special=True) == [marker, letter]


def test_bos_and_eos_stand_around_the_text_when_the_model_wants_them() -> None:
    tokenizer = load_tokenizer(sentence_pieces() | {"tokenizer.ggml.add_eos_token": True})
    assert tokenizer.encode("", add_special=True, parse_special=False) == [1, 2]
    assert tokenizer.encode("", add_special=False, parse_special=False) == []


def test_the_longest_special_token_is_cut_out_first() -> None:
    tokenizer = load_tokenizer(byte_pairs("<a><b>", "<b><c>c"))
    token_ids = tokenizer.encode("<a><b><c>c", add_special=False, parse_special=True)
    assert tokenizer.token_text(token_ids[-1]) == "<b><c>c"


def test_an_unknown_pre_tokenizer_is_named() -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.pre='klingon': unknown pre-tokenizer"):
        load_tokenizer(byte_pairs() | {"tokenizer.ggml.pre": "klingon"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model='rwkv'"),
        ({"tokenizer.ggml.model": "none"}, "has no vocabulary"),
        ({"tokenizer.ggml.tokens": 7}, "tokenizer.ggml.tokens: int"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.token_type: int64 [2], expected"),
        ({"tokenizer.ggml.merges": ["h i", "nonsense"]}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["h zz"]}, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token: 'yes'"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_tokenizer(byte_pairs() | change)
    assert named in caught.value.message


def test_ids_out_of_range_are_not_special_ids() -> None:
    tokenizer = load_tokenizer(byte_pairs() | {"tokenizer.ggml.bos_token_id": 10**6, "tokenizer.ggml.eos_token_id": -1})
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)


def test_a_token_id_out_of_range_is_an_index_error() -> None:
    tokenizer = load_tokenizer(byte_pairs())
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(IndexError):
            tokenizer.piece(token_id)


@pytest.mark.parametrize("vocabulary", [byte_pairs, sentence_pieces])
@given(words=st.lists(st.sampled_from(["<|im_end|>", "<|im", "_end|>", "<", "a", "é", "</s>", "\ud800"]), max_size=6))
def test_literal_text_becomes_no_control_token_and_loses_nothing(vocabulary, words: list[str]) -> None:
    tokenizer = load_tokenizer(vocabulary("<|im_start|>", "<|im_end|>"))
    text = "".join(words)
    as_text = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.encode(tokenizer.literal(text), add_special=False, parse_special=True) == as_text


def test_markers_around_literal_text_stay_control_tokens() -> None:
    tokenizer = load_tokenizer(byte_pairs())
    end = tokenizer.token_id("<|im_end|>")
    token_ids = tokenizer.encode(f"{tokenizer.literal('<|im_end|>')}<|im_end|>", add_special=False, parse_special=True)
    assert token_ids.count(end) == 1
    assert token_ids[-1] == end


@pytest.mark.parametrize("kind", ["none", "no_vocab", None])
def test_a_file_may_have_no_vocabulary(kind: str | None) -> None:
    assert not has_vocabulary({"tokenizer.ggml.model": kind})
    assert has_vocabulary(byte_pairs())


MARKERS = ["<a>", "<ab>", "<|x|>", "<>", "[a]", "<a", "a>", "<<a>>"]


def cut_in_order(text: str, ids: dict[str, int]) -> list[str | int]:
    """The longest marker first, in the whole text, then the next one in what is left."""
    fragments: list[str | int] = [text] if text else []
    for marker in sorted(ids, key=lambda marker: -len(marker)):
        pieces: list[str | int] = []
        for fragment in fragments:
            parts = [fragment] if isinstance(fragment, int) else fragment.split(marker)
            for n, part in enumerate(parts):
                pieces += ([ids[marker]] if n else []) + ([part] if part != "" else [])
        fragments = pieces
    return fragments


@given(
    markers=st.lists(st.sampled_from(MARKERS), unique=True).map(lambda chosen: sorted(chosen, key=len)),
    words=st.lists(st.sampled_from([*MARKERS, "<", ">", "a", " "]), max_size=12),
)
def test_special_tokens_are_cut_out_the_longest_first(markers: list[str], words: list[str]) -> None:
    tokenizer = load_tokenizer(byte_pairs(*markers))
    plain = cut_in_order("".join(words), {marker: tokenizer.token_id(marker) for marker in markers})
    expected: list[int] = []
    for part in plain:
        whole = isinstance(part, int)
        expected += [part] if whole else tokenizer.encode(part, add_special=False, parse_special=False)
    assert tokenizer.encode("".join(words), add_special=False, parse_special=True) == expected


def test_a_long_word_does_not_hold_other_threads_up():
    tokenizer, asked, answered = load_tokenizer(byte_pairs()), threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: asked.wait() and answered.set())
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1000)  # so that a thread runs only where this one lets go
        other.start()
        asked.set()
        tokenizer.encode(" " * 500_000, add_special=False, parse_special=False)
        assert answered.is_set()
    finally:
        sys.setswitchinterval(interval)
        other.join()
