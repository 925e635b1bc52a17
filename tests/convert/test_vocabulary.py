"""A tokenizer's files as keys of a header: the ids are those that the models' own tokenizers give."""

import json

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.vocabulary import vocabulary_keys
from ollama_zmq.text.tokenizer import load_tokenizer
from tests.convert.test_pieces import LLAMA3
from tests.oracle.checkpoints import write_safetensors

TEXT = [
    "The quick brown fox jumps over the lazy dog, and it's 1234 times 56.",
    "She'll say: 'naïve café' — twice!\n\nThen the fox, the dog and the quick brown café went away.",
    "def f(x):\n    return x * 42  # the answer",
]
SAID = [*TEXT, "", " ", "  two  blanks ", "Zürich 中文 🙂 foxes", "<|end|>the fox<|end|>", "dog\tfox\r\n"]


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken("<|begin|>", special=True), AddedToken("<|end|>", special=True)])
    return made


def scored():
    """As Llama 2's: spaces are ▁, what is no token falls back to bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=450, special_tokens=tokens, show_progress=False))
    said = json.loads(made.to_str())
    said["added_tokens"] = [one for one in said["added_tokens"] if not one["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(said))
    made.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    return made


def wordpiece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=special, unk_token="<unk>", initial_alphabet=list("Zü"), show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def keys_of(tmp_path, engine, settings=None):
    write_safetensors(tmp_path / "model.safetensors", {})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    if engine is not None:
        engine.save(str(tmp_path / "tokenizer.json"))
    with Checkpoint({path.name: path for path in tmp_path.iterdir()}) as checkpoint:
        return vocabulary_keys(checkpoint)


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (byte_level, SAID),
        (scored, [text for text in SAID if not text.startswith("<|end|>")]),
        (wordpiece, [text for text in SAID if "<|end|>" not in text]),
        (unigram, [*TEXT[:1], "the fox", "dog, dog"]),
    ],
    ids=["byte pairs", "byte pairs with scores", "WordPiece", "Unigram"],
)
def test_ids_are_those_of_the_models_own_tokenizer(tmp_path, make, texts):
    engine = make()
    tokenizer = load_tokenizer(keys_of(tmp_path, engine))
    for text in texts:
        wanted = engine.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special=False, parse_special=True) == wanted, text


def test_special_tokens_are_those_that_the_settings_name(tmp_path):
    engine = byte_level()
    settings = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>", "add_bos_token": True}
    tokenizer = load_tokenizer(keys_of(tmp_path, engine, settings))
    begin, end = engine.token_to_id("<|begin|>"), engine.token_to_id("<|end|>")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.is_control(end)) == (begin, end, True)
    assert tokenizer.encode("x", add_special=True, parse_special=False)[0] == begin


def test_what_a_tokenizer_puts_around_a_text_is_put_there(tmp_path):
    engine = wordpiece()
    settings = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = load_tokenizer(keys_of(tmp_path, engine, settings))
    assert tokenizer.encode("the fox", add_special=True, parse_special=False) == engine.encode("the fox").ids


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("{{ x }}", {"tokenizer.chat_template": "{{ x }}"}),
        (
            [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}, {"name": "other"}],
            {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"},
        ),
        (None, {}),
    ],
)
def test_the_chat_template_comes_along(tmp_path, given, wanted):
    keys = keys_of(tmp_path, byte_level(), {"chat_template": given})
    assert {key: value for key, value in keys.items() if "template" in key} == wanted


def test_without_a_tokenizer_the_model_runs_on_ids(tmp_path):
    assert keys_of(tmp_path, None) == {"tokenizer.ggml.model": "none"}
