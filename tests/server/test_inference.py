"""What the inference endpoints share."""

from types import SimpleNamespace

import pytest

from ollama_zmq.errors import ContextOverflow, RequestError
from ollama_zmq.server.inference import encoded, tokenizer_of


class Letters:
    """A tokenizer of single letters whose BOS is "^"."""

    def __init__(self, *, add_bos):
        self.add_bos, self.bos_id = add_bos, ord("^")

    def encode(self, text, *, add_special, parse_special):
        assert parse_special
        return [self.bos_id] * (add_special and self.add_bos) + [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("add_bos", "prompt", "shown"),
    [(True, "ab", "^ab"), (True, "^ab", "^ab"), (True, "", "^"), (False, "ab", "ab"), (False, "^^ab", "^^ab")],
)
def test_a_model_that_wants_bos_gets_it_once(add_bos, prompt, shown):
    assert "".join(map(chr, encoded(Letters(add_bos=add_bos), prompt, 100))) == shown


def test_a_prompt_that_must_not_be_cut_is_refused_before_it_is_encoded_whole():
    text = "ab" * 100_000
    assert len(encoded(Letters(add_bos=True), text, 100)) < 10_000
    with pytest.raises(ContextOverflow, match=r"prompt of 200000 characters, more than \d+ tokens, does not fit"):
        encoded(Letters(add_bos=True), text, 100, may_cut=False)


def test_a_model_without_a_vocabulary_reads_no_text():
    prepared = SimpleNamespace(request=SimpleNamespace(model="m"))
    with pytest.raises(RequestError, match="model 'm': the file has no vocabulary, so it cannot read a prompt"):
        tokenizer_of(prepared, None)
