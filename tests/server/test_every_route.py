"""Odd text through every input of every route: never a 500, never a hang, and what goes in comes out as it should.

Routes are read from the application, so that a new one is tried on arrival: its path, its query, its headers, its body
as bytes, and every text field of the records that bodies are decoded into.
"""

import json
import re

import msgspec
import pytest

from ollama_zmq.server import decoding, services
from ollama_zmq.server.app import ROUTES
from tests.server.conftest import SERVERS

ODD = {
    "half a pair": '"a\\ud83d"',
    "the other half": '"\\ude00b"',
    "control characters": '"\\u0000\\u0001\\u001b[31m\\u007f\\u0085"',
    "zero width": '"a\\u200b\\u200d\\ufeff\\u202e\\u2028b"',
    "line ends": '"a\\r\\nb\\rc\\n"',
    "empty": '""',
    "path": '"../../../etc/passwd\\u0000"',
    "template": '"{{ .Prompt }}{% for %}{{{{"',
    "wide": '"' + "é" * 3000 + '"',
}
RAW = {
    "latin-1": b'"caf\xe9"',
    "cut utf-8": b'"\xf0\x9f\x98"',
    "surrogate in utf-8": b'"\xed\xa0\xbd"',
    "only high bytes": b'"\xff\xfe\xfd"',
    "null": b"null",
    "number": b"1e300",
    "deep": b"[" * 300 + b"]" * 300,
    "list of nulls": b"[null, null]",
    "empty object": b"{}",
}
VALUES = {name: text.encode() for name, text in ODD.items()} | RAW
BODIES = {
    "nothing": b"",
    "blanks": b" \r\n\t",
    "no json": b"\x00\xff{",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": '{"model": "tiny"}'.encode("utf-16"),
    "a list": b"[]",
    "a number": b"0",
    "deep": b"[" * 100_000,
    "deep objects": b'{"model":' * 100_000,
    "cut": b'{"model": "tiny", "prompt": "',
}
PATHS = ("%00", "%FF%FE", "%ED%A0%BD", "%F0%9F%98%80", "..%2F..%2Fetc", "%0D%0A", "a" * 3000, "%E2%80%8B", "{}")
CALLS = [(method, route.path) for route in ROUTES for method in sorted(route.methods - {"HEAD"})]


def filled(path, text="tiny"):
    """*path* with *text* in the place of its parameters."""
    return re.sub(r"\{[^}]*\}", lambda _: text, path)


def is_right(response):
    """Whether *response* is an answer or a refusal in words, but not a fault of ours."""
    if response.status_code >= 500 and response.status_code not in (501, 503):
        return False
    if response.status_code < 400 or response.request.method == "HEAD":
        return True
    return bool(response.text) and "internal error" not in response.text


@pytest.fixture
def decoded(monkeypatch):
    """The records that bodies are decoded into, as they are asked for."""
    kinds = []

    def decode(body, kind):
        kinds.append(kind)
        return decoding.decode(body, kind)

    monkeypatch.setattr(services, "decode", decode)
    return kinds


def json_object(path, field, value):
    """A request of *path* in which all is well but *field*."""
    fields = {
        "model": b'"made"' if path == "/api/create" else b'"tiny"',
        "from": b'"tiny"',
        "destination": b'"copy"',
        "prompt": b'"x"',
        "messages": b'[{"role": "user", "content": "x"}]',
        "stream": b"false",
        field: value,
    }
    return b"{%s}" % b", ".join(b'"%s": %s' % (name.encode(), item) for name, item in fields.items())


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_every_field_takes_or_refuses_odd_values(on_site, decoded, method, path):
    async def scenario(site):
        await site.http.request(method, filled(path), content=b'{"model": "nope"}')
        fields = [field.encode_name for kind in decoded[:1] for field in msgspec.structs.fields(kind)]
        assert fields or path not in ("/api/generate", "/api/chat", "/api/create", "/api/show", "/api/cluster/plan")
        for field in fields:
            for name, value in VALUES.items():
                response = await site.http.request(method, filled(path), content=json_object(path, field, value))
                assert is_right(response), (field, name, response.status_code, response.text[:200])

    on_site(scenario, rpc_servers=SERVERS)


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_every_route_takes_or_refuses_odd_bodies_paths_and_headers(on_site, method, path):
    async def scenario(site):
        for name, body in BODIES.items():
            response = await site.http.request(method, filled(path), content=body)
            assert is_right(response), (name, response.status_code, response.text[:200])
        for odd in PATHS:
            response = await site.http.request(method, filled(path, odd), params={"q": odd}, content=b"{}")
            assert is_right(response), (odd, response.status_code, response.text[:200])
        for name in ("Origin", "User-Agent", "Content-Type", "Content-Length", "Accept", "X-Forwarded-For"):
            for odd in (b"\xff\xfe", b"caf\xe9", b"a" * 3000, b"", b"\xed\xa0\xbd"):
                response = await site.http.request(method, filled(path), headers={name: odd}, content=b"{}")
                assert is_right(response) or response.status_code == 403, (name, odd, response.text[:200])

    on_site(scenario, rpc_servers=SERVERS)


@pytest.mark.parametrize("text", ODD.values(), ids=list(ODD))
def test_text_comes_out_as_it_went_in(on_site, text):
    meant = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(text))

    async def scenario(site):
        async def post(path, **fields):
            """Post *fields*, in which TEXT stands for the text."""
            body = json.dumps({"model": "tiny", "stream": False, "_debug_render_only": True} | fields)
            response = await site.http.post(path, content=body.replace("TEXT", text[1:-1]).encode())
            assert response.status_code == 200, response.text
            return response.json()

        raw = await post("/api/generate", prompt="xTEXT", raw=True)
        assert raw["_debug_info"]["rendered_template"] == "x" + meant
        said = await post("/api/chat", messages=[{"role": "user", "content": "xTEXTx"}])
        assert f"x{meant}x" in said["_debug_info"]["rendered_template"]
        texts = {"system": "sTEXT", "license": "lTEXT", "messages": [{"role": "user", "content": "mTEXT"}]}
        assert await post("/api/create", **{"model": "made", "from": "tiny"}, **texts) == {"status": "success"}
        shown = await post("/api/show", model="made")
        assert (shown["system"], shown["license"], shown["messages"][0]["content"]) == (
            "s" + meant,
            "l" + meant,
            "m" + meant,
        )

    on_site(scenario)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", {"prompt": "TEXT", "raw": True}),
        ("/api/generate", {"prompt": "TEXT"}),
        ("/api/generate", {"prompt": "x", "template": "TEXT"}),
        ("/api/generate", {"prompt": "x", "system": "TEXT"}),
        ("/api/chat", {"messages": [{"role": "user", "content": "TEXT"}]}),
        ("/api/chat", {"messages": [{"role": "TEXT", "content": "x"}]}),
        ("/api/show", {"system": "TEXT"}),
        ("/api/create", {"system": "TEXT", "from": "tiny", "name": "TEXT"}),
        ("/api/generate", {"model": "TEXT"}),
        ("/api/generate", {"keep_alive": "TEXT"}),
        ("/api/generate", {"think": "TEXT"}),
        ("/api/generate", {"options": {"rpc_servers": "TEXT"}}),
        ("/api/generate", {"options": {"num_ctx": "TEXT"}}),
        ("/api/generate", {"prompt": "x", "options": {"stop": ["TEXT"]}}),
    ],
)
@pytest.mark.parametrize("unit", ["a", "a <|im_end|>é\\ud83d\r\n"])
def test_ten_megabytes_are_answered_or_refused_in_a_few_words(on_site, path, fields, unit):
    text = unit * (10_000_000 // len(unit.encode()))
    body = json.dumps({"model": "tiny", "stream": False} | fields)
    body = body.replace("TEXT", json.dumps(text)[1:-1].replace(r"\\ud", r"\ud"))

    async def scenario(site):
        response = await site.http.post(path, content=body.encode())
        assert is_right(response), response.text[:200]
        assert response.status_code == 200 or len(response.text) < 5000

    on_site(scenario)
