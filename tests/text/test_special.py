"""Special tokens are cut out as llama.cpp does it: token by token, each in what the ones before it left."""

import random
from functools import partial
from types import SimpleNamespace

from ollama_zmq.text.special import WHITE_SPACE, SpecialTokens
from ollama_zmq.text.vocabulary import HIDDEN, LSTRIP, RSTRIP


def cut_one_by_one(texts, attributes, text, parse_special):
    """The definition, in quadratic time."""
    fragments = [text] if text else []
    for token_id, token in enumerate(texts):
        if attributes[token_id] & HIDDEN and not parse_special:
            continue
        cut = []
        for fragment in fragments:
            while isinstance(fragment, str) and token in fragment:
                left, _, fragment = fragment.partition(token)
                left = left.rstrip(WHITE_SPACE) if attributes[token_id] & LSTRIP else left
                fragment = fragment.lstrip(WHITE_SPACE) if attributes[token_id] & RSTRIP else fragment
                cut += [left, token_id] if left else [token_id]
            cut += [fragment] if fragment != "" else []
        fragments = cut
    return fragments


def test_tokens_that_overlap_and_swallow_blanks_are_cut_in_order():
    rng = random.Random(5)
    for _ in range(2000):
        texts = sorted({"".join(rng.choices("ab <>", k=rng.randint(1, 4))) for _ in range(5)}, key=len, reverse=True)
        attributes = [rng.choice((0, HIDDEN)) | rng.choice((0, LSTRIP)) | rng.choice((0, RSTRIP)) for _ in texts]
        vocabulary = SimpleNamespace(texts=texts, attributes=attributes, special_ids=partial(range, len(texts)))
        text, parse_special = "".join(rng.choices("ab <>\n", k=rng.randint(0, 25))), rng.random() < 0.5
        expected = cut_one_by_one(texts, attributes, text, parse_special)
        assert SpecialTokens(vocabulary).split(text, parse_special=parse_special) == expected
