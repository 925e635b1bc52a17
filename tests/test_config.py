"""The environment becomes one record; what is wrong in it is told and never fatal."""

import math
import re
from pathlib import Path

import pytest

from ollama_zmq.config import VARIABLES, Config
from ollama_zmq.errors import RequestError
from ollama_zmq.host import Address


def read(**environ: str) -> Config:
    return Config.from_environment(environ)


def test_an_empty_environment_gives_the_defaults():
    config = read()
    assert (config.host, config.keep_alive_s, config.max_queue, config.num_parallel, config.context_length) == (
        Address("http", "127.0.0.1", 11434),
        300.0,
        512,
        0,
        0,
    )
    assert (config.models, config.rpc_servers, config.warnings) == (Path.home() / ".ollama/models", "", ())


@pytest.mark.parametrize(
    ("text", "netloc"),
    [
        ("", "127.0.0.1:11434"),
        ("1.2.3.4", "1.2.3.4:11434"),
        ("1.2.3.4:1234", "1.2.3.4:1234"),
        (":1234", ":1234"),
        ("http://1.2.3.4", "1.2.3.4:80"),
        ("https://1.2.3.4", "1.2.3.4:443"),
        ("https://1.2.3.4:4321", "1.2.3.4:4321"),
        ("example.com", "example.com:11434"),
        ("example.com:1234", "example.com:1234"),
        ("::1", "[::1]:11434"),
        ("[::1]", "[::1]:11434"),
        ("[::1]:1337", "[::1]:1337"),
        (' "1.2.3.4" ', "1.2.3.4:11434"),
        ("1.2.3.4:1234/", "1.2.3.4:1234"),
        ("0.0.0.0:0", "0.0.0.0:0"),
    ],
)
def test_host_is_read_as_ollama_reads_it(text, netloc):
    config = read(OLLAMA_HOST=text)
    assert (config.host.netloc, config.warnings) == (netloc, ())


@pytest.mark.parametrize(("text", "kept"), [("", "f16"), ("f16", "f16"), ("Q8_0", "q8_0")])
def test_a_type_of_kv_cache_is_read_as_it_is_kept(text, kept):
    config = read(OLLAMA_KV_CACHE_TYPE=text)
    assert (config.kv_cache_type, config.warnings) == (kept, ())


def test_a_type_of_kv_cache_that_is_not_kept_is_a_warning_and_float16():
    config = read(OLLAMA_KV_CACHE_TYPE="q4_0")
    warning = "OLLAMA_KV_CACHE_TYPE='q4_0': not one of f16, q8_0, using f16"
    assert (config.kv_cache_type, config.warnings) == ("f16", (warning,))


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:1,127.0.0.1:2",
        "a b:1",
        "ftp://a",
        "user:pw@host:1",
        "a\udce9:b:c",
        "http://a?b",
        "-x:1",
        "a..b",
        "x" * 64,
    ],
)
def test_a_host_that_is_no_address_is_an_error_that_names_it(text):
    config = read(OLLAMA_HOST=text)
    assert config.host == Address("http", "127.0.0.1", 11434)
    with pytest.raises(RequestError, match=f"OLLAMA_HOST={re.escape(repr(text))}"):
        config.require("OLLAMA_MODELS", "OLLAMA_HOST")
    config.require("OLLAMA_MODELS")


@pytest.mark.parametrize(
    ("text", "own"),
    [("", True), ("0.0.0.0:1", True), (":1", True), ("[::]:1", True), ("LocalHost", True), ("10.0.0.1", False)],
)
def test_our_own_machine_is_what_is_connected_to(text, own):
    assert read(OLLAMA_HOST=text).host.is_own_machine is own


def test_the_largest_port_is_a_port():
    config = read(OLLAMA_HOST="example.com:65535")
    assert (config.host.port, config.warnings) == (65535, ())


@pytest.mark.parametrize(
    "text",
    ["example.com:99999", "example.com:65536", "example.com:http", "example.com:\u0661", "http://example.com:-1"],
)
def test_an_impossible_port_is_a_warning_and_the_default(text):
    config = read(OLLAMA_HOST=text)
    assert config.host.port == (80 if "://" in text else 11434)
    assert len(config.warnings) == 1


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":99", "http://127.0.0.1:99"),
        ("[::]:99", "http://[::1]:99"),
        ("https://example.com/ollama/", "https://example.com:443/ollama"),
    ],
)
def test_a_client_connects_to_loopback_where_the_server_listens_everywhere(text, url):
    assert read(OLLAMA_HOST=text).host.url == url


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 300.0), ("1h30m", 5400.0), ("90", 90.0), ("0", 0.0), ("-1", math.inf), ("-1m", math.inf), ("250ms", 0.25)],
)
def test_keep_alive_is_seconds_or_a_go_duration(text, seconds):
    assert read(OLLAMA_KEEP_ALIVE=text).keep_alive_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 300.0), ("2m", 120.0), ("90", 90.0), ("0", math.inf), ("-1s", math.inf)]
)
def test_a_load_has_five_minutes_without_progress_or_what_is_set_and_none_is_no_limit(text, seconds):
    config = read(OLLAMA_LOAD_TIMEOUT=text)
    assert (config.load_timeout_s, config.warnings) == (seconds, ())


def test_numbers_that_are_none_are_named_and_replaced():
    huge = "9" * 20
    config = read(
        OLLAMA_MAX_QUEUE="many", OLLAMA_KEEP_ALIVE="soon", OLLAMA_CONTEXT_LENGTH="-5", OLLAMA_NUM_PARALLEL=huge
    )
    assert (config.max_queue, config.keep_alive_s, config.context_length) == (512, 300.0, 0)
    assert config.warnings == (
        "OLLAMA_KEEP_ALIVE='soon': not understood, using 300.0",
        "OLLAMA_CONTEXT_LENGTH='-5': not understood, using 0",
        f"OLLAMA_NUM_PARALLEL={huge!r}: not understood, using 0",
        "OLLAMA_MAX_QUEUE='many': not understood, using 512",
    )


@pytest.mark.parametrize(("text", "on"), [("", False), ("0", False), ("false", False), ("1", True), ("yes", True)])
def test_a_switch_that_is_neither_true_nor_false_is_on(text, on):
    assert read(OLLAMA_NOPRUNE=text).no_prune is on


@pytest.mark.parametrize(("text", "on"), [("", True), ("0", False), ("1", True)])
def test_guessing_is_on_unless_it_is_turned_off(text, on):
    assert read(OLLAMA_SPECULATE=text).speculate is on


@pytest.mark.parametrize(("text", "on"), [("", True), ("0", False), ("1", True)])
def test_words_that_name_a_control_token_become_it_unless_that_is_turned_off(text, on):
    assert read(OLLAMA_PARSE_SPECIAL=text).parse_special is on


def test_own_origins_come_before_the_local_ones():
    origins = read(OLLAMA_ORIGINS="https://a.example, chrome-extension://*").origins
    assert origins[:2] == ("https://a.example", "chrome-extension://*")
    assert {"http://localhost", "http://localhost:*", "https://127.0.0.1:*", "app://*"} <= set(origins)


@pytest.mark.parametrize("origin", ["a.com", "http://a.com/", "https://a.com/x"])
def test_an_origin_that_no_browser_sends_is_a_warning(origin):
    config = read(OLLAMA_ORIGINS=f"https://ok.example,{origin}")
    (warning,) = config.warnings
    assert warning.startswith(f"OLLAMA_ORIGINS: {origin!r} matches no origin: expected scheme://host[:port]")


@pytest.mark.parametrize(
    "origin", ["*", "*.a.com", "http://a.com", "http://a.com:*", "chrome-extension://abc", "x://*"]
)
def test_an_origin_that_a_browser_may_send_is_none(origin):
    assert read(OLLAMA_ORIGINS=origin).warnings == ()


def test_a_variable_that_looks_like_one_of_ours_is_a_hint():
    assert read(OLLAMA_RPC_SERVER="a:1", OLLAMA_BASE_URL="x", PATH="y").warnings == (
        "'OLLAMA_RPC_SERVER' is not a variable of ollama: did you mean OLLAMA_RPC_SERVERS?",
    )
    assert read(OLLAMA_FLASH_ATTENTION="1").warnings == ("OLLAMA_FLASH_ATTENTION has no effect in ollama-zmq",)


def test_without_a_home_only_what_needs_it_fails(monkeypatch):
    def nowhere(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    config = read()
    config.require("OLLAMA_HOST")
    with pytest.raises(RequestError, match="home is not known: set OLLAMA_MODELS to a folder, or HOME"):
        config.require("OLLAMA_MODELS")
    assert read(OLLAMA_MODELS="/m").errors == {}


def test_quotes_around_a_list_of_workers_are_dropped():
    assert read(OLLAMA_RPC_SERVERS='"10.0.0.1:50052,b:1"').rpc_servers == "10.0.0.1:50052,b:1"


@pytest.mark.parametrize(
    ("text", "policy", "n_warnings"), [("", "throughput", 0), ("Fastest", "fastest", 0), ("best", "throughput", 1)]
)
def test_the_policy_is_one_of_two(text, policy, n_warnings):
    config = read(OLLAMA_RPC_POLICY=text)
    assert (config.rpc_policy, len(config.warnings)) == (policy, n_warnings)


def test_every_variable_that_is_read_is_listed():
    root = Path(__file__).parent.parent
    sources = [path.read_text() for folder in ("ollama_zmq", "kernels") for path in root.joinpath(folder).rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"[\w.]+\(\"(OLLAMA_[A-Z_]+)\"", text)}
    assert read == set(VARIABLES)
