"""Any text goes into every command, by its arguments, flags, stdin, files, environment and the server's answers: none
ends in a traceback, and none acts on a terminal."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click
import pytest

from ollama_zmq.cli import COMMANDS, root
from ollama_zmq.cli.children import Children
from ollama_zmq.cli.show import TEXTS as TEXT_FLAGS
from ollama_zmq.config import VARIABLES, Config
from ollama_zmq.errors import OllamaZmqError

TEXTS = {
    "half a pair": "a\ud83d",
    "bytes of Latin-1": "caf\udce9",
    "control": "\x00\x01\x1b[2J\x1b]0;owned\x07\x7f\x9b31m",
    "zero width": "\u200b\u200d\u202eabc\u2066\ufeff",
    "byte order mark": "\ufeffabc",
    "line ends": "a\r\nb\rc\u2028d",
    "markup": "[/red] [bold] %s {0} {{ .Prompt }} --",
    "looks like a flag": "-\udce9",
    "nothing": "",
    "blank": " \t ",
    "numbers": "9" * 5000,
    "10 MB": "ab\udce9 " * 2_500_000,
}
SHORT = [name for name in TEXTS if name != "10 MB"]


def commands(group, path=()):
    """Every command, with the words that call it."""
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))


ALL = dict(commands(root))
IDS = [" ".join(path) for path in ALL]


def calls(path, text):
    """Argument lists that put *text* at each place of a command."""
    arguments = [param for param in ALL[path].params if isinstance(param, click.Argument)]
    given = [text] * max(1, sum(abs(argument.nargs) for argument in arguments))
    yield [*path, *given]
    yield [*path, "--", *given]
    for option in ALL[path].params:
        if isinstance(option, click.Option):
            flag = max(option.opts, key=len)
            yield [*path, *given, flag] if option.is_flag else [*path, *given, f"{flag}={text}"]
            if not option.is_flag:
                yield [*path, *["m"] * len(given), flag, text]


@pytest.fixture
def odd_server(monkeypatch):
    """A server that answers everything, with the text it is told in every field."""
    said = {"text": ""}

    class Odd(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = "".join(f"{json.dumps(answer)}\n" for answer in answers_of(self.path, said["text"])).encode()
            self.send_response(400 if self.path == "/api/copy" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
        yield said
        server.shutdown()
        thread.join()


def answers_of(path, text):
    worker = {"address": text, "status": text, "detail": text, "layers": text, "version": text, "devices": [text]}
    numbers = dict.fromkeys(
        ("held_bytes", "memory_budget", "rtt_us", "bandwidth_bytes_per_s", "decode_bytes_per_s", "prefill_macs_per_s"),
        1,
    )
    speeds = {"decode_tokens_per_s": 1.0, "prefill_tokens_per_s": 0.0}
    sizes = dict.fromkeys(("weight_bytes", "kv_bytes", "scratch_bytes", "need_bytes"), 1)
    stage = {"part": text, "first_layer": -1, "last_layer": -1, "worker": text, "predicted_us": 1.0, **sizes}
    loaded = {
        "name": text,
        "status": text,
        "nbytes": 1,
        "uploads": [],
        "stages": [stage],
        "notes": [text],
        "missing": [text],
    }
    entry = {"name": text, "digest": text, "size": 1, "modified_at": text, "expires_at": text}
    match path:
        case "/api/tags" | "/api/ps":
            return [{"models": [entry | {"size_vram": 0, "context_length": 1}]}]
        case "/api/version":
            return [{"version": text}]
        case "/api/show":
            texts = dict.fromkeys(("license", "modelfile", "parameters", "template", "system", "requires"), text)
            details = {"family": text, "parameter_size": text, "quantization_level": text}
            tensors = [{"name": text, "type": text, "shape": [1]}]
            return [
                texts | {"details": details, "model_info": {text: [text]}, "tensors": tensors, "capabilities": [text]}
            ]
        case "/api/cluster":
            return [{"workers": [worker | numbers], "models": [loaded | {"measured": speeds, "predicted": speeds}]}]
        case "/api/cluster/plan":
            plan = {"name": text, "chosen": True, "error": text, "unloads": [text], "notes": [text], "stages": [stage]}
            top = {"model": text, "num_ctx": 1, "num_parallel": 1, "missing": [text]}
            return [top | {"plans": [plan | {"predicted": speeds}]}]
        case "/api/embed":
            return [{"embeddings": [[0.5]]}]
        case "/api/generate":
            return [{"response": text, "thinking": text}, {"response": 5, "message": text, "done": True}]
        case "/api/copy":
            return [{"error": text}]
    return [{"status": text}]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no children, and a Modelfile in the working folder."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        if host == "127.0.0.1":
            return look_up(host, *rest, **more)
        str(host).encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def refuse(*_, **__):
        raise OllamaZmqError("not here")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(Children, "run", refuse)
    monkeypatch.setattr("ollama_zmq.store.demo_model.fetch_demo_model", refuse)
    monkeypatch.chdir(tmp_path)


def as_it_is(arguments):
    """Whether stdout is a text of the model's, which goes unchanged into a pipe."""
    return arguments[0] == "run" or (arguments[0] == "show" and {f"--{name}" for name in TEXT_FLAGS} & set(arguments))


@pytest.mark.parametrize("text", SHORT)
@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_any_text_goes_into_every_command_and_comes_back_from_the_server(ollama, odd_server, tmp_path, path, text):
    odd_server["text"] = TEXTS[text]
    data = TEXTS[text].encode("utf-8", "surrogatepass")
    tmp_path.joinpath("Modelfile").write_bytes(b"FROM m\nSYSTEM " + data)
    for arguments in calls(path, TEXTS[text]):
        printed = ollama(*arguments, stdin=data)
        assert printed.code in (0, 1)
        shown = printed.err if as_it_is(arguments) else printed.out + printed.err
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", shown)
        assert "Traceback" not in printed.err


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_ten_megabytes_go_into_every_command(ollama, odd_server, path):
    text = TEXTS["10 MB"]
    assert ollama(*next(calls(path, text)), stdin=text.encode("utf-8", "surrogatepass")).code in (0, 1)


@pytest.mark.parametrize("text", SHORT)
def test_any_text_may_stand_in_every_variable(text):
    for name in VARIABLES:
        config = Config.from_environment({name: TEXTS[text]})
        assert all("\x1b" not in line and "\ud83d" not in line for line in config.warnings)


@pytest.mark.parametrize("text", SHORT)
@pytest.mark.parametrize("form", ["{}", "{}:1", "a:{}", "http://127.0.0.1:1/{}", "http://{}/x"])
def test_any_text_may_stand_in_the_address_of_the_server(ollama, monkeypatch, form, text):
    monkeypatch.setattr("os.environ", {"OLLAMA_HOST": form.format(TEXTS[text])})
    printed = ollama("list")
    assert (printed.code, printed.out, printed.err.count("\n")) == (1, "", 1)
    assert printed.err.startswith(("Error: OLLAMA_HOST", "Error: could not connect to ollama server"))


@pytest.mark.parametrize("text", SHORT)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "NO_PROXY"])
def test_any_text_may_stand_in_a_proxy(ollama, monkeypatch, name, text):
    proxies = {"HTTP_PROXY": "http://127.0.0.1:1", name: TEXTS[text]}
    monkeypatch.setattr("os.environ", {"OLLAMA_HOST": "nowhere.invalid"} | proxies)
    printed = ollama("list")
    assert (printed.code, printed.out, printed.err.count("\n")) == (1, "", 1)


def test_every_command_is_tried():
    assert {path[0] for path in ALL} == set(COMMANDS)
    assert ("cluster", "plan") in ALL
