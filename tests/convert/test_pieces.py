"""The pre-tokenizer of a tokenizer.json is found by how it cuts text."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ollama_zmq.convert.pieces import DIFFICULT, pre_tokenizer_name
from ollama_zmq.errors import ModelFileError
from ollama_zmq.text.bpe import words
from ollama_zmq.text.pretokenizers import RULES

# as they stand in the tokenizer.json of the models
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALIKE = {  # names of rules that cut every text alike, or so nearly that the difficult text does not tell them apart
    "bailingmoe": "qwen2",
}


def engine(*steps):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return made


def split(pattern):
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        (split(LLAMA3), True, "llama3"),
        (split(LLAMA3), False, "dbrx"),
        (split(QWEN2), False, "qwen2"),
        (split(GPT4O), False, "gpt-4o"),
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], False, "gpt-2"),
        (
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
            False,
            "starcoder",
        ),
    ],
)
def test_the_models_own_steps_have_the_name_that_files_have(steps, ignore_merges, name):
    assert pre_tokenizer_name(engine(*steps), ignore_merges=ignore_merges) == name


def test_steps_that_nobody_knows_are_refused():
    with pytest.raises(ModelFileError, match="cuts text as none of those that are known"):
        pre_tokenizer_name(engine(*split("x+")), ignore_merges=False)


def test_rules_differ_in_how_they_cut_the_difficult_text():
    names: dict[tuple[object, ...], str] = {}
    for name, rules in ((names_.split()[0], rules) for names_, rules in RULES.items()):
        kind = (rules.byte_level, rules.ignore_merges, rules.add_bos, tuple(words(DIFFICULT, rules)))
        first = names.setdefault(kind, name)
        assert first == name or ALIKE.get(name) == first or name in ("glm4", "sarvam-moe"), (name, first)
