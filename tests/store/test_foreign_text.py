"""Whatever bytes stand in a file, they become text that can be shown and sent, or one of our errors; nothing else."""

from __future__ import annotations

import json
import struct

import msgspec
import pytest

from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.gguf_header import readable
from ollama_zmq.formats.manifest import decode_config, decode_json, decode_manifest
from ollama_zmq.formats.modelfile import COMMANDS, decode_modelfile, parse_modelfile
from ollama_zmq.formats.options import typed_parameters
from ollama_zmq.store.names import parse_name
from ollama_zmq.text.go_templates import GoTemplate
from ollama_zmq.text.jinja_templates import JinjaTemplate

TEN_MB = 10_000_000
FOREIGN = {
    "latin-1": b"caf\xe9 \xa9",
    "half a character": b"\xf0\x9f\x8e",
    "a surrogate in UTF-8": b"\xed\xa0\xbd",
    "control characters": bytes(range(1, 32)) + b"\x7f",
    "NUL": b"a\0b",
    "zero width": "\u200b\u200c\u200d\u2060\ufeff".encode(),
    "right to left": "\u202eabc\u200f".encode(),
    "emoji of several": "\U0001f468\u200d\U0001f469\u200d\U0001f467".encode(),
    "byte order mark": b"\xef\xbb\xbfabc",
    "UTF-16": "a\u20ac".encode("utf-16"),
    "CRLF": b"one\r\ntwo\rthree\n",
    "no-break space": "\u00a0a\u00a0".encode(),
    "line separators": "a\u2028b\u2029c\x85d\x0be".encode(),
    "escape codes": b"\x1b[2J\x1b]0;title\x07",
    "noncharacter": "\uffff\U0010ffff".encode(),
    "quotes": b'"""" \\" {{ }} {% %} #',
    "nothing": b"",
    "10 MB": b"a" * TEN_MB,
    "10 MB that is no UTF-8": b"\xff" * TEN_MB,
}


def gguf_with(tmp_path, key, value, kind=8):
    raw = b"".join(struct.pack("<Q", len(text)) + text for text in (value,))
    raw = struct.pack("<IQ", 8, 1) + raw if kind == 9 else raw
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + raw
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    with open_gguf(path) as file:
        return {name: file.metadata[name] for name in file.metadata}


def gguf_key(tmp_path, raw):
    return gguf_with(tmp_path, raw, b"value")


def gguf_value(tmp_path, raw):
    (text,) = gguf_with(tmp_path, b"general.description", raw).values()
    assert text == raw.decode("utf-8", "replace")
    return text


def gguf_token(tmp_path, raw):
    (tokens,) = gguf_with(tmp_path, b"tokenizer.ggml.tokens", raw, kind=9).values()
    assert tokens[0].encode("utf-8", "surrogateescape") == raw  # a tokenizer needs the bytes
    return readable(tokens[0])


def json_string(raw):
    """JSON with *raw* as it is between the quotes, the way a foreign program may have written it."""
    return raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n").replace(b"\r", b"\\r")


def manifest(_tmp_path, raw):
    layer = b'{"mediaType":"%b","digest":"%b","size":1}' % ((json_string(raw),) * 2)
    return msgspec.to_builtins(decode_manifest(b'{"config":%b,"layers":[%b]}' % (layer, layer), "m"))


def config(_tmp_path, raw):
    return msgspec.to_builtins(decode_config(b'{"model_family":"%b"}' % json_string(raw), "c"))


def test_a_config_that_is_not_utf_8_is_read_with_replacements():
    assert decode_config(b'{"model_family":"caf\xe9"}', "c").model_family == "caf\ufffd"


def parameters(_tmp_path, raw):
    return decode_json(b'{"%b":["%b"]}' % ((json_string(raw),) * 2), "p")


def go_template(_tmp_path, raw):
    return GoTemplate(raw.decode("utf-8", "replace")).render([{"role": "user", "content": "hi"}])


def jinja_template(_tmp_path, raw):
    return JinjaTemplate(raw.decode("utf-8", "replace")).render([{"role": "user", "content": "hi"}])


def name(_tmp_path, raw):
    return str(parse_name(raw.decode("utf-8", "replace")))


def modelfile(command):
    lead = {"parameter": "parameter stop ", "message": "message user "}.get(command, f"{command} ")

    def read(_tmp_path, raw):
        found = parse_modelfile(decode_modelfile(b"FROM a\n" + lead.encode() + b'"""' + raw + b'"""\n'))
        typed_parameters(found.parameters)
        return msgspec.to_builtins(found)

    return read


INPUTS = {
    "gguf key": gguf_key,
    "gguf value": gguf_value,
    "gguf token": gguf_token,
    "manifest": manifest,
    "config": config,
    "parameters": parameters,
    "Go template": go_template,
    "Jinja template": jinja_template,
    "model name": name,
    **{f"Modelfile {command}": modelfile(command) for command in COMMANDS},
}


@pytest.mark.parametrize("raw", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("read", INPUTS.values(), ids=INPUTS)
def test_foreign_bytes_become_text_that_can_be_sent_or_one_of_our_errors(tmp_path, read, raw):
    found, message = outcome(read, tmp_path, raw)
    json.dumps([found, message], ensure_ascii=False).encode()
    assert len(message) <= 2000
    assert "\n" not in message


def outcome(read, tmp_path, raw):
    """What was read, and the message of the error there was in place of it."""
    try:
        return read(tmp_path, raw), ""
    except OllamaZmqError as error:
        return None, str(error)


UTF_8 = {key: raw for key, raw in FOREIGN.items() if raw.decode("utf-8", "ignore").encode() == raw and raw[:1] != b'"'}
UTF_8.pop("nothing")


@pytest.mark.parametrize("raw", UTF_8.values(), ids=UTF_8)
@pytest.mark.parametrize("command", ["system", "template", "license", "parser"])
def test_a_modelfile_keeps_every_character(command, raw):
    found = parse_modelfile(decode_modelfile(b"FROM a\n" + command.encode() + b' """' + raw + b'"""'))
    values = {
        "system": found.system,
        "template": found.template,
        "license": found.licenses[-1] if found.licenses else None,
        "parser": found.parser,
    }
    assert values[command] == raw.decode()


def test_blanks_around_a_value_are_spaces_and_tabs_only():
    assert parse_modelfile("FROM a\nSYSTEM \t\u00a0be\u00a0brief\u00a0 \t\n").system == "\u00a0be\u00a0brief\u00a0"
