"""Bodies are read as Go's encoding/json reads them."""

import gzip
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import RequestError
from ollama_zmq.server import services
from ollama_zmq.server.decoding import decode
from ollama_zmq.server.errors import BodyTooLarge
from ollama_zmq.server.schema.generation import ChatRequest, GenerateRequest
from ollama_zmq.server.services import unpacked

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def prompt_of(body):
    return decode(body, GenerateRequest).prompt


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (rb'{"prompt": "a\ud83d"}', "a\ufffd"),
        (rb'{"prompt": "\ude00b"}', "\ufffdb"),
        (rb'{"prompt": "\uDA00x\uDFFF"}', "\ufffdx\ufffd"),
        (rb'{"prompt": "\ud83d\ud83d\ude00"}', "\ufffd😀"),
        (rb'{"prompt": "\ud83dx\ude00"}', "\ufffdx\ufffd"),
        (rb'{"prompt": "\\ud83d"}', r"\ud83d"),  # an escaped backslash, not half a pair
        (rb'{"prompt": "\\\ud83d"}', "\\\ufffd"),
        (b'{"prompt": "caf\xe9"}', "caf\ufffd"),
        (b'{"prompt": "\xf0\x9f\x98"}', "\ufffd\ufffd\ufffd"),  # Go counts bytes
        (b'{"prompt": "\xed\xa0\xbd"}', "\ufffd\ufffd\ufffd"),
        (b'\xef\xbb\xbf{"prompt": "\xef\xbb\xbfx"}', "\ufeffx"),
        (b'{"prompt": "x"} {"prompt": "y"}', "x"),
        (b'\r\n\t {"prompt": "x"}garbage\xff', "x"),
        (b'{"prompt": "x", "prompt": "y"}', "y"),
        (b'{"Prompt": "x"}', "x"),
        (b'{"PROMPT": "x", "prompt": "y"}', "y"),
        (b'{"prompt": null, "nope": {"prompt": 3}}', ""),
        (b"null", ""),
        (b'"x"', None),
        (b'{"prompt": "a\nb"}', None),
        (b'{"prompt": "x"', None),
    ],
)
def test_text_is_what_go_reads(body, prompt):
    if prompt is None:
        with pytest.raises(RequestError, match="invalid JSON in the request body: "):
            prompt_of(body)
    else:
        assert prompt_of(body) == prompt


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_python_takes_for_a_number_and_json_does_not_is_refused(number):
    with pytest.raises(RequestError, match="invalid JSON"):
        decode(f'{{"options": {{"top_p": {number}}}}}'.encode(), GenerateRequest)


def test_a_body_nested_without_end_is_refused_in_words():
    with pytest.raises(RequestError, match="nested too deep"):
        decode(b"[" * 100_000, GenerateRequest)


def test_records_in_a_request_have_their_names_in_any_case_and_options_theirs_as_written():
    body = b'{"Messages": [{"Role": "user", "CONTENT": "x", "Name": 1}, null], "Options": {"Seed": 1, "seed": null}}'
    request = decode(body, ChatRequest)
    assert [(message.role, message.content) for message in request.messages] == [("user", "x"), ("", "")]
    assert request.options == {"Seed": 1, "seed": None}


@given(json_values)
def test_any_value_in_options_comes_in_as_it_was_sent(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        body = f'{{"options": {{"x": {text}}}}}'
        assert decode(body.encode("utf-8", "surrogatepass"), GenerateRequest).options == {"x": value}
        assert decode(body.encode("utf-8", "surrogatepass") + b"!", GenerateRequest).options == {"x": value}


@given(st.binary(max_size=60))
def test_what_is_in_a_string_never_makes_a_body_unreadable(content):
    quoted = bytes(byte for byte in content if byte >= 0x20 and byte not in b'"\\')
    read = prompt_of(b'{"prompt": "' + quoted + b'"}')
    assert read.replace("\ufffd", "") == quoted.decode(errors="ignore").replace("\ufffd", "")


@given(st.binary(max_size=80))
def test_no_body_breaks_the_decoder(body):
    with suppress(RequestError):
        decode(body, ChatRequest)


def test_a_body_may_be_packed_with_gzip_and_is_refused_in_words_when_it_is_not():
    body = b'{"prompt": "x"}' * 100
    packed = gzip.compress(body)
    assert [unpacked(packed, name) for name in ("gzip", " GZIP ", "x-gzip")] == [body] * 3
    assert unpacked(body, "") == unpacked(body, "identity") == body
    for data, encoding in ((body, "gzip"), (packed[:-9], "gzip"), (body, "br"), (b"", "gzip")):
        with pytest.raises(RequestError, match="gzip"):
            unpacked(data, encoding)


def test_a_small_gzip_does_not_become_a_large_body(monkeypatch):
    monkeypatch.setattr(services, "MAX_BODY_BYTES", 1000)
    assert len(unpacked(gzip.compress(bytes(1000)), "gzip")) == 1000
    with pytest.raises(BodyTooLarge):
        unpacked(gzip.compress(bytes(1001)), "gzip")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"messages": [' + b",".join([b"{}"] * 300_000) + b"]}", "objects and lists, at most 262144"),
        (b'{"context": [' + b",".join([b"1"] * 1_100_000) + b"]}", "values, at most 1048576"),
        (b'{"options": {"stop": [' + b",".join([b'""'] * 2_100_000) + b"]}}", "texts, at most 2097152"),
    ],
    ids=["objects", "values", "texts"],
)
def test_a_body_that_is_small_on_the_wire_and_large_in_memory_is_refused(body, words):
    with pytest.raises(RequestError, match=words):
        decode(body, ChatRequest)


def test_braces_and_commas_in_a_text_are_text():
    prompt = r"{[,\"" * 800_000
    assert len(decode(b'{"prompt": "%s"}' % prompt.encode(), GenerateRequest).prompt) == 4 * 800_000
