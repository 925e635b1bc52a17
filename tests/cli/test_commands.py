"""Commands print what Ollama's print, to the column, and end with 0 or 1."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from ollama_zmq.cli import COMMANDS, cluster, demo
from ollama_zmq.cli.cluster import model_line
from ollama_zmq.cli.near_model import near_model
from ollama_zmq.cli.ps import processor, until
from ollama_zmq.cli.tables import GAP, NARROW, columns, display_width, shortened, table
from ollama_zmq.client import Client
from ollama_zmq.config import VARIABLES
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.version import VERSION

NO_SERVER = "Error: could not connect to ollama server, run 'ollama serve' to start it\n"


def test_help_lists_every_command_in_order(ollama):
    printed = ollama("--help")
    listed = re.findall(r"^  ([a-z-]+) +[A-Z]", printed.out, re.MULTILINE)
    assert (printed.code, printed.err, listed) == (0, "", list(COMMANDS))
    assert ollama().out == printed.out == ollama("help").out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "help"])
def test_every_command_has_its_help(ollama, command):
    printed = ollama(command, "--help")
    assert (printed.code, printed.err) == (0, "")
    assert f"\n\nUsage:\n  ollama {command}" in printed.out
    assert "\n\nFlags:\n" in printed.out
    assert "\n\nEnvironment Variables:\n  OLLAMA_" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80
    assert ollama("help", command).out == printed.out


def test_help_of_serve_lists_every_variable(ollama):
    listed = re.findall(r"^  (OLLAMA_\w+) ", ollama("serve", "--help").out, re.MULTILINE)
    assert listed == list(VARIABLES)


def test_help_about_nothing_known_is_told_and_no_failure(ollama):
    printed = ollama("help", "nosuch")
    assert (printed.code, printed.out) == (0, "")
    assert printed.err.startswith("Unknown help topic ['nosuch']\nLarge language model runner")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nonsense",), 'unknown command "nonsense" for "ollama"'),
        (("rnu",), 'unknown command "rnu" for "ollama"; did you mean "run"?'),
        (("cluster", "plann"), 'unknown command "plann" for "ollama cluster"; did you mean "plan"?'),
        (("rm",), "requires at least 1 arg(s), only received 0"),
        (("run",), "requires at least 1 arg(s), only received 0"),
        (("show",), "accepts 1 arg(s), received 0"),
        (("show", "a", "b", "c"), "accepts 1 arg(s), received 3"),
        (("cp", "a"), "accepts 2 arg(s), received 1"),
        (("serve", "x"), "accepts 0 arg(s), received 1"),
        (("list", "--nonsense"), "unknown flag: --nonsense"),
        (("run", "m", "-x"), "unknown shorthand flag: -x"),
        (("show", "m", "--licence"), "unknown flag: --licence; did you mean --license?"),
        (("run", "m", "--format"), "flag needs an argument: --format"),
        (("show", "m", "--system=x"), "flag takes no value: --system"),
        (("cluster", "plan", "m", "--num-ctx", "x"), "invalid argument for '--num-ctx': 'x' is not a valid integer"),
    ],
)
def test_wrong_use_is_one_line_and_1(ollama, arguments, error):
    printed = ollama(*arguments)
    assert (printed.code, printed.out, printed.err) == (1, "", f"Error: {error}\n")


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("ps",), ("show", "m"), ("run", "m", "hi"), ("stop", "m"), ("rm", "m"), ("cp", "a", "b"), ("cluster",)],
)
def test_without_a_server_every_command_says_how_to_start_one(ollama, monkeypatch, arguments):
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    printed = ollama(*arguments)
    assert (printed.code, printed.out, printed.err) == (1, "", NO_SERVER)


def test_no_proxy_stands_between_us_and_our_own_machine(ollama, server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ollama("list").code == 0


def test_version_names_the_server_or_its_absence(ollama, server, monkeypatch):
    with Client() as client:
        shown = client.version()
    assert ollama("--version").out == f"ollama version is {shown}\nollama-zmq version is {VERSION}\n"
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    assert ollama("-v").out == (
        f"Warning: could not connect to a running Ollama instance\nollama-zmq version is {VERSION}\n"
    )


def test_list_shows_name_id_size_and_age(ollama, server, store):
    models = store.list()
    lines = ollama("list").out.splitlines()
    assert re.fullmatch(r"NAME {12}ID {14}SIZE {6}MODIFIED {2,}", lines[0])
    assert re.fullmatch(rf"{models[0].name.short} +{models[0].digest[:12]}    \d+ KB    .* ago +", lines[1])
    assert {len(line) for line in lines} == {len(lines[0])}
    assert [line.split()[0] for line in ollama("ls", "TU", "ignored").out.splitlines()] == ["NAME", "tuned:latest"]


def test_ps_shows_where_a_model_is_and_until_when(ollama, server, store, broker):
    assert ollama("ps").out == "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL    \n"
    ollama("run", "tiny", "--keepalive", "1h", "")
    digest = store.get("tiny").digest[:12]
    header, line, worker, name, speed = ollama("ps", "--verbose").out.splitlines()
    assert name == "tiny:latest"
    assert speed.split() == [
        "decode",
        "50.0",
        "(predicted",
        "60.0),",
        "prefill",
        "-",
        "(predicted",
        "-)",
        "tokens/s",
    ]
    assert header.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert re.fullmatch(rf"tiny:latest    {digest}    1 KB    100% CPU     512        .* from now +", line)
    assert worker.split() == ["local", "0-3", "1", "KB"]


@pytest.mark.parametrize(
    ("size", "vram", "shown"),
    [(10, 0, "100% CPU"), (10, 10, "100% GPU"), (20, 13, "35%/65% CPU/GPU"), (10, 11, "Unknown"), (0, 5, "Unknown")],
)
def test_processor_is_the_shares_of_cpu_and_gpu(size, vram, shown):
    assert processor(size, vram) == shown


def test_until_tells_stopping_and_forever():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert until((now - timedelta(seconds=1)).isoformat(), now) == "Stopping..."
    assert until((now + timedelta(days=36500)).isoformat(), now) == "Forever"
    assert until((now + timedelta(minutes=4, seconds=30)).isoformat(), now) == "4 minutes from now"


def test_columns_are_as_wide_as_they_look():
    assert table(("A", "B"), [("日本", "x"), ("é", "yy")]) == "A       B     \n日本    x     \né       yy    "
    assert table(("A", "B"), [("e\u0301\u200d", "x")]) == "A    B    \ne\u0301\u200d    x    "


def test_show_has_ollamas_sections(ollama, server):
    printed = ollama("show", "tuned")
    sections = re.sub(r" +\n", "\n", re.sub(r"parameters {10}\S+", "parameters          N", printed.out))
    assert sections == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          N\n"
        "    context length      512\n"
        "    embedding length    64\n"
        "    quantization        F16\n"
        "\n"
        "  Capabilities\n"
        "    completion\n"
        "\n"
        "  Parameters\n"
        "    num_ctx        64\n"
        '    rpc_servers    "10.9.9.9:1"\n'
        '    stop           "END"\n'
        "    temperature    0.5\n"
        "\n"
        "  System\n"
        "    Be brief.\n"
        "\n"
    )


def test_show_verbose_adds_metadata_and_tensors(ollama, server):
    out = ollama("show", "tiny", "-v").out
    assert re.search(r"^    llama.context_length +512 +$", out, re.MULTILINE)
    assert re.search(r"^    tokenizer.ggml.tokens +\[\S+ \.\.\.\+\d+ more\] +$", out, re.MULTILINE)
    assert re.search(r"^    blk.0.attn_k.weight +F16 +\[64 32\] +$", out, re.MULTILINE)


def test_show_prints_one_text_when_asked(ollama, server):
    assert ollama("show", "tuned", "--system").out == "Be brief.\n"
    assert "PARAMETER num_ctx 64" in ollama("show", "tuned", "--modelfile").out
    printed = ollama("show", "tuned", "--system", "--template")
    assert (printed.code, printed.err) == (
        1,
        "Error: only one of '--license', '--modelfile', '--parameters', '--template', or '--system' can be specified\n",
    )


def test_cp_and_rm_tell_what_they_did(ollama, server, store):
    assert ollama("cp", "tiny", "copy").out == "copied 'tiny' to 'copy'\n"
    assert ollama("rm", "copy", "tuned").out == "deleted 'copy'\ndeleted 'tuned'\n"
    assert [model.name.short for model in store.list()] == ["tiny:latest"]
    printed = ollama("rm", "nope")
    assert (printed.code, printed.err) == (1, "Error: model 'nope' not found\n")


@pytest.mark.parametrize(
    "arguments", [("show", "tinny"), ("run", "tinny", "hi"), ("rm", "tinny"), ("cp", "tinny", "b")]
)
def test_a_model_with_a_typing_error_is_answered_with_the_one_that_may_be_meant(ollama, server, arguments):
    printed = ollama(*arguments)
    assert printed.code == 1
    assert printed.err.startswith("Error: model ")
    assert printed.err.endswith("; did you mean tiny?\n")


def test_a_model_that_a_modelfile_is_from_is_such_a_name_too(ollama, server, tmp_path):
    recipe = tmp_path / "Modelfile"
    recipe.write_text("FROM tinny\n")
    assert ollama("create", "b", "-f", str(recipe)).err.endswith("model 'tinny' not found; did you mean tiny?\n")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smollm2:135", "smollm2:135m"),
        ("smolm2:135m", "smollm2:135m"),
        ("SMOLLM2", "smollm2:135m"),
        ("lama", "Llama"),
        ("lama:latest", "Llama"),
        ("llama:8b", "Llama"),
        ("nonsense", ""),
    ],
)
def test_the_model_that_may_be_meant_is_like_the_name_or_of_its_family(name, near):
    assert near_model(name, ["smollm2:135m", "Llama:latest"]) == near


def test_rm_unloads_first_and_removes_what_cannot_be_unloaded(ollama, server, monkeypatch):
    calls = []

    def unload(self, model):
        calls.append(("unload", model))
        if model == "broken":
            raise OllamaZmqError("truncated")

    monkeypatch.setattr(Client, "unload", unload)
    monkeypatch.setattr(Client, "delete", lambda self, model: calls.append(("delete", model)))
    printed = ollama("rm", "tiny", "broken")
    assert calls == [("unload", "tiny"), ("delete", "tiny"), ("unload", "broken"), ("delete", "broken")]
    assert (printed.code, printed.out) == (0, "deleted 'tiny'\ndeleted 'broken'\n")
    assert printed.err == "Warning: unable to stop model 'broken': truncated\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("pull", "m"),
        ("push", "m"),
        ("signin",),
        ("login",),
        ("signout",),
        ("logout",),
        ("launch", "claude", "--model", "m"),
    ],
)
def test_what_is_not_done_is_refused_with_a_sentence(ollama, server, arguments):
    printed = ollama(*arguments)
    assert (printed.code, printed.out, printed.err.count("\n")) == (1, "", 1)
    assert re.match(r"Error: .{12,}\n", printed.err)


def test_pull_prints_each_status_once(ollama, server, monkeypatch):
    asked = []

    def pull(self, model, **fields):
        asked.append((model, fields))
        return iter([{"status": "pulling x", "completed": n} for n in range(3)] + [{"status": "success"}])

    monkeypatch.setattr(Client, "pull", pull)
    printed = ollama("pull", "m", "--insecure")
    assert (printed.code, printed.out, printed.err) == (0, "", "pulling x\nsuccess\n")
    assert asked == [("m", {"insecure": True})]


def test_stop_unloads(ollama, server, broker):
    ollama("run", "tiny", "")
    printed = ollama("stop", "tiny")
    assert (printed.code, printed.out, broker.n_unloads) == (0, "", 1)
    assert ollama("stop", "nope").err == 'Error: couldn\'t find model "nope" to stop\n'


def test_cluster_prints_workers_and_stages(ollama, server):
    ollama("run", "tiny", "")
    lines = ollama("cluster").out.splitlines()
    assert lines[1].split()[:4] == ["local", "ready", "0-3", "1"]
    assert lines[3] == "tiny:latest: loaded, 0 B"
    assert lines[5:8] == ["Microseconds of a step, p50/p95:", "", "STAGE       WORKER  COMPUTE  WIRE  QUEUE"]
    assert lines[8].split() == ["whole", "0..3", "local", "-", "-", "-"]
    assert lines[10] == "decode 50.0 (predicted 60.0), prefill - (predicted -) tokens/s"


def test_cluster_verbose_adds_links_speeds_versions_and_devices(ollama, server):
    ollama("run", "tiny", "")
    lines = [line.split() for line in ollama("cluster", "-v").out.splitlines()]
    start = lines.index(["local"])
    assert [line[0] for line in lines[start + 1 : start + 5]] == ["link", "prefill", "version", "device"]
    assert ["STAGE", "WORKER", "COMPUTE", "WIRE", "QUEUE", "PREDICTED", "STEPS"] in lines


@pytest.mark.parametrize(
    ("asked", "planned", "note"),
    [
        (None, 64, ""),
        (64, 64, ""),
        (9999999, 8192, "note: --num-ctx 9999999: the model's context is 8192, and a load takes that"),
        (1, 4, "note: --num-ctx 1: the least is 4, and a load takes that"),
    ],
)
def test_a_context_that_no_load_takes_is_told(asked, planned, note):
    assert cluster.context_note(asked, planned) == note


def test_cluster_plan_says_that_a_context_is_more_than_the_model_has(ollama, server, broker):
    lines = ollama("cluster", "plan", "tiny", "--num-ctx", "9999999").out.splitlines()
    assert lines[:2] == [f"tiny:latest: context {broker.planned[0].num_ctx}, 1 at once", ""]
    assert lines[2].startswith("note: --num-ctx 9999999: the model's context is ")


def test_cluster_plan_prints_every_plan_with_its_stages(ollama, server, broker):
    printed = ollama("cluster", "plan", "tiny", "--rpc-servers", "127.0.0.1:50052", "--num-ctx", "64")
    assert (broker.planned[0].num_ctx, broker.planned[0].rpc_servers) == (64, ("127.0.0.1:50052",))
    assert printed.out.splitlines() == [
        "tiny:latest: context 64, 1 at once",
        "",
        "   PLAN                DECODE         PREFILL",
        "*  this machine alone  60.0 tokens/s  900.0 tokens/s",
        "     unloads other",
        "   10.0.0.1:50052      -              -",
        "     too small",
        "",
        "this machine alone",
        "",
        "STAGE       WORKER  WEIGHTS  CACHE  SCRATCH  MEMORY  TOKEN",
        "whole 0..3  local   1 KB     2 KB   3 KB     7 KB    16667 us",
        "",
        "not there: nobody listens",
    ]
    assert printed.code == 0


def test_why_a_worker_is_missing_is_said_once(ollama, server, monkeypatch):
    def lost(address, detail):
        numbers = {"memory_budget": 0, "rtt_us": 0.0, "decode_bytes_per_s": 0.0, "held_bytes": 0}
        return {"address": address, "status": "lost", "detail": detail, "layers": "", **numbers}

    speeds = {"decode_tokens_per_s": 0.0, "prefill_tokens_per_s": 0.0}
    model = {"name": "m", "status": "loaded", "nbytes": 0, "uploads": [], "stages": [], "notes": []}
    model |= {"measured": speeds, "predicted": speeds, "missing": ["nobody listens at a:1", "c:1 left"]}
    workers = [lost("a:1", "nobody listens at a:1"), lost("b:1", "too old")]
    monkeypatch.setattr(Client, "cluster", lambda self: {"workers": workers, "models": [model]})
    lines = ollama("cluster").out.splitlines()
    said = [line for line in lines if "a:1" in line or "b:1" in line or "c:1" in line]
    assert said[2:] == ["nobody listens at a:1", "b:1: too old", "missing: c:1 left"]


WORKER = {
    "address": "192.168.100.200:50052",
    "status": "connecting",
    "layers": "60-79",
    "held_bytes": 999_000_000_000,
    "memory_budget": 999_000_000_000,
    "rtt_us": 99_999.0,
    "decode_bytes_per_s": 999e9,
}
TIMES = {part: {"p50_us": 99_999.0, "p95_us": 99_999.0} for part in ("compute", "wire", "queue")}
STAGE = {
    "part": "layers",
    "first_layer": 60,
    "last_layer": 79,
    "worker": WORKER["address"],
    "predicted_us": 99_999.0,
    "latency": TIMES | {"steps": 99_999},
} | {f"{what}_bytes": 999_000_000_000 for what in ("weight", "kv", "scratch", "need")}


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (cluster.WORKER_COLUMNS, cluster.worker_row(WORKER)),
        (cluster.STAGE_COLUMNS, cluster.stage_row(STAGE)[:5]),
        (cluster.PLANNED_COLUMNS, cluster.planned_row(STAGE)),
        (demo.STAGE_COLUMNS, demo.stage_row(STAGE | {"worker": "127.0.0.1:50052"})),
    ],
)
def test_our_own_tables_fit_eighty_columns(header, row):
    assert max(map(len, table(header, [row], NARROW).splitlines())) <= 80


@pytest.mark.parametrize(("width", "gap"), [(80, "    "), (15, "  ")])
def test_a_table_is_set_closer_on_a_terminal_that_is_too_narrow(monkeypatch, width, gap):
    monkeypatch.setattr("ollama_zmq.cli.tables.is_terminal", lambda *streams: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert table(("NAME", "SIZE"), [("tiny", "1 KB")]).rstrip().endswith(f"tiny{gap}1 KB")


LONG_NAME = "registry.example/somebody/" + "x" * 60 + "模型模型:q4_K_M"
LONG_WORKER = "a-rather-long-host-name.in-a-rack.of-a-site.example.com:50052"


@pytest.mark.parametrize(
    ("header", "row", "gap"),
    [
        (("NAME", "ID", "SIZE", "MODIFIED"), (LONG_NAME, "0123456789ab", "99 GB", "11 months ago"), GAP),
        (cluster.WORKER_COLUMNS, cluster.worker_row(WORKER | {"address": LONG_WORKER}), NARROW),
        (
            (*cluster.STAGE_COLUMNS, *cluster.STAGE_DETAILS),
            cluster.stage_row(STAGE | {"worker": LONG_WORKER, "latency": {"steps": 9}}),
            NARROW,
        ),
    ],
)
def test_a_long_name_loses_its_middle_on_a_terminal_and_nothing_in_a_pipe(monkeypatch, header, row, gap):
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in table(header, [row], gap)
    monkeypatch.setattr("ollama_zmq.cli.tables.is_terminal", lambda *streams: True)
    lines = table(header, [row], gap).splitlines()
    assert 78 <= max(map(display_width, lines)) <= 80
    (cut,) = re.findall(r"\S*…\S*", lines[1])
    (whole,) = {LONG_NAME, LONG_WORKER} & set(row)
    head, tail = cut.split("…")
    assert (whole[: len(head)], whole[-len(tail) :]) == (head, tail)
    assert abs(display_width(head) - display_width(tail)) <= 2
    assert [cell for cell in row if cell not in lines[1]] == [whole]


def test_what_show_tells_of_a_model_is_whole_on_any_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("ollama_zmq.cli.tables.is_terminal", lambda *streams: True)
    assert columns([("", "stop", "x" * 90)]) == [f"  stop  {'x' * 90}"]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc…fg"), ("模型模型", 6, "模…型"), ("e\u0301abcd", 4, "e\u0301a…d")],
)
def test_what_is_shortened_is_as_wide_as_it_looks(text, width, shown):
    assert shortened(text, width) == shown


def test_a_model_that_loads_shows_what_each_worker_has_been_sent():
    uploads = [{"worker": "a:1", "sent_bytes": 5_000_000, "total_bytes": 20_000_000}]
    model = {"name": "m", "status": "loading", "nbytes": 30_000_000, "uploads": uploads}
    assert model_line(model) == "m: loading, 30 MB, 5 MB of 20 MB sent to a:1"
