"""SentencePiece: the heap and the remembered words give what the plain definition gives."""

from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.text.spm import DEFAULTS, SentencePiece
from ollama_zmq.text.vocabulary import Vocabulary
from tests.text.vocabularies import sentence_pieces


def merged_slowly(vocabulary: Vocabulary, text: str) -> list[str]:
    """The definition: join the best-scored pair of neighbours, leftmost on a tie, until there is none."""
    symbols = list(text)
    while True:
        pairs = [(i, vocabulary.ids.get(symbols[i] + symbols[i + 1])) for i in range(len(symbols) - 1)]
        known = [(-vocabulary.scores[token_id], i) for i, token_id in pairs if token_id is not None]
        if not known:
            return symbols
        _, at = min(known)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@given(text=st.text(alphabet="ab é", max_size=40), inner_space=st.booleans())
def test_segments_as_defined(text: str, inner_space: bool) -> None:
    vocabulary = Vocabulary.from_metadata(sentence_pieces(*["a▁"] * inner_space), DEFAULTS)
    found = SentencePiece(vocabulary).token_ids(text, after_special=False)
    assert [vocabulary.texts[token_id] for token_id in found] == merged_slowly(vocabulary, text.replace(" ", "▁"))


def test_an_unknown_character_becomes_its_bytes() -> None:
    vocabulary = Vocabulary.from_metadata(sentence_pieces(), DEFAULTS)
    found = SentencePiece(vocabulary).token_ids("☃", after_special=False)
    assert [vocabulary.texts[token_id] for token_id in found] == ["<0xE2>", "<0x98>", "<0x83>"]


def test_each_byte_of_an_unknown_character_is_unknown_where_the_vocabulary_has_no_bytes() -> None:
    metadata = sentence_pieces()
    metadata["tokenizer.ggml.tokens"] = [text.replace("<0x", "<byte ") for text in metadata["tokenizer.ggml.tokens"]]
    vocabulary = Vocabulary.from_metadata(metadata, DEFAULTS)
    found = SentencePiece(vocabulary).token_ids("a☃!", after_special=False)
    assert [vocabulary.texts[token_id] for token_id in found] == ["a", "<unk>", "<unk>", "<unk>", "<unk>"]


def test_a_space_is_put_in_front_only_at_the_start_and_after_special_tokens() -> None:
    vocabulary = Vocabulary.from_metadata(sentence_pieces(), DEFAULTS)
    pieces = SentencePiece(vocabulary)
    assert pieces.token_ids("a", after_special=True) == [vocabulary.ids["▁a"]]
    assert pieces.token_ids("a", after_special=False) == [vocabulary.ids["a"]]
