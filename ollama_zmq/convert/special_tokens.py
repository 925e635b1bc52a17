"""The special tokens and the chat template of a checkpoint, from the settings beside its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.common import Pairs
from ollama_zmq.errors import ModelFileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelt so in GGUF files
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


def special_keys(checkpoint: Checkpoint, texts: list[str], settings: dict[str, Any]) -> Pairs:
    """Return the ids of special tokens, and whether BOS and EOS are put around a text."""
    found: Pairs = {}
    config = checkpoint.config
    generation = checkpoint.table("generation_config.json")
    for name, key in SPECIAL.items():
        text = settings.get(name)
        text = text.get("content") if isinstance(text, dict) else text
        ends = generation.get(f"{name}_id", config.get(f"{name}_id"))
        given = ends[0] if isinstance(ends, list) and ends else ends
        if isinstance(text, str) and text in texts:
            found[f"tokenizer.ggml.{key}"] = texts.index(text)
        elif type(given) is int and 0 <= given < len(texts):
            found[f"tokenizer.ggml.{key}"] = given
    around = _put_around(checkpoint) if "tokenizer.json" in checkpoint.files else None
    for name, other, place in (("bos", "cls_token_id", 0), ("eos", "seperator_token_id", 1)):
        adds = settings.get(f"add_{name}_token")
        if not isinstance(adds, bool) and around is not None:
            own = {found.get(f"tokenizer.ggml.{key}") for key in (f"{name}_token_id", other)}
            adds = around[place] in own - {None}
        if isinstance(adds, bool):
            found[f"tokenizer.ggml.add_{name}_token"] = adds
    return found


def engine_of(checkpoint: Checkpoint) -> Engine:
    """Return the model's own tokenizer. Raises ModelFileError if its file is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(checkpoint.files["tokenizer.json"]))
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"tokenizer.json: {error}") from None


def _put_around(checkpoint: Checkpoint) -> tuple[int, int]:
    """The first and the last token that the model's own tokenizer makes of a text."""
    ids = engine_of(checkpoint).encode("x").ids or [-1]
    return ids[0], ids[-1]


def template_keys(checkpoint: Checkpoint, settings: dict[str, Any]) -> Pairs:
    """Return the chat template: of a list the one called "default", and that for tools."""
    file = checkpoint.files.get("chat_template.jinja")
    if file is not None:
        return {"tokenizer.chat_template": file.read_bytes().decode("utf-8", "replace")}
    given = checkpoint.table("chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(given, str):
        return {"tokenizer.chat_template": given}
    named = {one.get("name"): one.get("template") for one in given or () if isinstance(one, dict)}
    keys = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
    return {key: text for name, key in keys.items() if isinstance(text := named.get(name), str)}
