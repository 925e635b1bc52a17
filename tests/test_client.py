"""The client speaks HTTP and our errors."""

import json
import sys

import httpx
import pytest

from ollama_zmq.client import Client
from ollama_zmq.errors import CapacityError, ModelNotFound, OllamaZmqError, RequestError, Unreachable


def client_of(answer):
    """A client whose every request is answered by *answer*."""
    return Client("http://127.0.0.1:1", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RequestError), (404, ModelNotFound), (501, OllamaZmqError), (503, CapacityError), (500, OllamaZmqError)],
)
def test_a_status_is_raised_as_our_error(status, error):
    with client_of(lambda request: httpx.Response(status, json={"error": "why"})) as client:
        with pytest.raises(error, match="why") as caught:
            client.tags()
        assert type(caught.value) is error
        with pytest.raises(error, match="why"):
            list(client.generate("m", "hi"))


def test_lines_are_chunks_and_an_error_line_is_raised():
    lines = b'{"response":"a"}\n\n{"response":"b"}\n{"error":"worker gone"}\n'
    with client_of(lambda request: httpx.Response(200, content=lines)) as client:
        chunks = client.generate("m", "hi")
        assert [next(chunks), next(chunks)] == [{"response": "a"}, {"response": "b"}]
        with pytest.raises(OllamaZmqError, match="worker gone"):
            next(chunks)


def test_fields_are_sent_as_they_are():
    seen = []

    def answer(request):
        seen.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(200, content=b"{}")

    with client_of(answer) as client:
        list(client.chat("m", [{"role": "user", "content": "hi"}], options={"seed": 1}))
        client.unload("m")
    assert seen == [
        ("POST", "/api/chat", {"model": "m", "messages": [{"role": "user", "content": "hi"}], "options": {"seed": 1}}),
        ("POST", "/api/generate", {"model": "m", "prompt": "", "stream": False, "keep_alive": 0}),
    ]


def test_nobody_there_says_how_to_start_a_server():
    def answer(request):
        raise httpx.ConnectError("refused")

    with client_of(answer) as client, pytest.raises(Unreachable, match="run 'ollama serve' to start it"):
        client.version()


def test_a_broken_connection_is_told():
    def answer(request):
        raise httpx.ReadError("reset by peer")

    with client_of(answer) as client, pytest.raises(Unreachable, match="broke: reset by peer"):
        client.version()


def test_somebody_else_who_answers_is_not_believed():
    with (
        client_of(lambda request: httpx.Response(200, content=b"<html>")) as client,
        pytest.raises(OllamaZmqError, match="is OLLAMA_HOST an ollama server"),
    ):
        client.tags()


@pytest.mark.parametrize(
    "answer",
    [{}, {"models": 3}, {"models": [3]}, {"models": [{"name": "m"}]}, {"models": [{"name": 3, "digest": 1}]}, []],
)
def test_an_answer_of_another_shape_is_one_line(answer):
    with (
        client_of(lambda request: httpx.Response(200, json=answer)) as client,
        pytest.raises(OllamaZmqError, match=r"the server('s)? answer"),
    ):
        client.tags()


def test_an_empty_list_may_be_null():
    with client_of(lambda request: httpx.Response(200, json={"models": None})) as client:
        assert client.tags() == client.ps() == []


def test_an_answer_nested_without_end_is_not_believed():
    with (
        client_of(lambda request: httpx.Response(200, content=b"[" * 100_000)) as client,
        pytest.raises(OllamaZmqError, match="no JSON object"),
    ):
        client.tags()


def test_half_characters_go_out_as_replacement_characters():
    bodies = []

    def answer(request):
        bodies.append(json.loads(request.content)["prompt"])
        return httpx.Response(200, content=b"{}")

    with client_of(answer) as client:
        list(client.generate("m", "caf\udce9 \ud83d \ud83d\ude00 日本"))
    assert bodies == ["caf\ufffd \ufffd 😀 日本"]


@pytest.mark.parametrize("host", ["0.0.0.0:1", ":1", "127.0.0.1:1", "localhost:1", "[::1]:1", "[::]:1"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "rubbish"])
def test_no_proxy_stands_between_us_and_our_own_machine(monkeypatch, host, proxy):
    monkeypatch.setenv("OLLAMA_HOST", host)
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy)
    with Client() as client, pytest.raises(Unreachable, match="run 'ollama serve'"):
        client.version()


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_named_in_one_line(monkeypatch, proxy):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(RequestError, match=f"proxy of ALL_PROXY={proxy}: ") as caught:
        Client("http://10.9.9.9:1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("url", "verifies"), [("https://box:1", True), ("http://box:1", False)])
def test_the_certificate_of_a_server_is_checked(monkeypatch, url, verifies):
    """Without TLS there is none, and the trusted ones need not be read."""
    settings = []
    monkeypatch.setattr(httpx, "Client", lambda **given: settings.append(given))
    Client(url)
    assert [given["verify"] for given in settings] == [verifies]


def test_an_upload_tells_its_progress(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 1_500_000)
    received, steps = [], []

    def answer(request):
        received.append((request.headers["content-length"], request.read()))
        return httpx.Response(201)

    with client_of(answer) as client:
        client.upload(path, "sha256:" + "0" * 64, steps.append)
    assert (received, steps) == ([("1500000", path.read_bytes())], [1 << 20, 1_500_000 - (1 << 20)])


def test_the_environment_names_the_server(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:9999")
    with Client() as client:
        assert client.url == "http://127.0.0.1:9999"


@pytest.mark.parametrize("url", ["ftp://here", "http://a b"])
def test_a_url_that_is_none_is_called_url_not_after_a_variable(url):
    with pytest.raises(RequestError, match=f"^url={url!r}"):
        Client(url)
