"""``ollama run`` answers prompts and pipes, and holds conversations."""

import re
import sys
from contextlib import nullcontext

import pytest

from ollama_zmq.cli import run_root
from ollama_zmq.cli.answer import DEFAULT, GREY, GREY_BOLD, Answer, timings
from ollama_zmq.cli.session import Session
from ollama_zmq.cli.wordwrap import WordWrap
from ollama_zmq.client import Client
from ollama_zmq.engine.requests import RequestFailed
from ollama_zmq.errors import RequestError, StageLost
from tests.server.fake_broker import hello


def prompt_of(broker):
    """The text of the last request's prompt."""
    return broker.models[-1].tokenizer.decode(broker.submitted[-1].token_ids, show_control=True)


def test_a_prompt_is_answered(ollama, server, broker):
    printed = ollama("run", "tiny", "Why", "blue?")
    assert (printed.code, printed.out, printed.err) == (0, "Hello there!\n\n", "")
    assert "Why blue?<|im_end|>" in prompt_of(broker)


def test_what_is_piped_in_comes_before_the_prompt(ollama, server, broker):
    ollama("run", "tiny", "sum up", stdin="a text")
    assert "a text sum up<|im_end|>" in prompt_of(broker)


@pytest.mark.parametrize(
    ("stdin", "prompt"),
    [
        (b"caf\xe9 \xff", "caf\ufffd \ufffd"),
        (b"\xef\xbb\xbfna\xc3\xafve", "naïve"),
        ("naïve".encode("utf-16"), "naïve"),
        (b"a\r\nb\0c\x1b", "a\r\nb\0c\x1b"),
    ],
)
def test_stdin_is_utf8_and_what_is_not_is_replaced(ollama, server, broker, stdin, prompt):
    assert ollama("run", "tiny", stdin=stdin).code == 0
    assert f"user\n{prompt}<|im_end|>" in prompt_of(broker)


def test_bytes_of_a_shell_that_are_not_utf8_are_replaced(ollama, server, broker):
    assert ollama("run", "tiny", "caf\udce9").code == 0
    assert "caf\ufffd<|im_end|>" in prompt_of(broker)


def test_think_takes_a_value_only_behind_an_equals_sign(ollama, server, broker):
    assert ollama("run", "tiny", "--think=false", "false").code == 0
    assert "user\nfalse<|im_end|>" in prompt_of(broker)


def test_closed_stdin_is_an_empty_one(ollama, server, broker, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert run_root(["run", "tiny", "Hi"]) == 0
    assert "user\nHi<|im_end|>" in prompt_of(broker)


def test_an_embedding_model_prints_an_array(ollama, server, monkeypatch):
    asked = []

    def embed(self, model, text, **fields):
        asked.append((model, text, fields))
        return [[0.5, -1.0]]

    monkeypatch.setattr(Client, "show", lambda *_: {"capabilities": ["embedding"]})
    monkeypatch.setattr(Client, "embed", embed)
    assert ollama("run", "e", "--truncate=false", "--dimensions", "2", "a text").out == "[0.5, -1.0]\n"
    assert asked == [("e", "a text", {"truncate": False, "dimensions": 2})]
    assert ollama("run", "e").err == (
        'Error: embedding models require input text. Usage: ollama run e "your text here"\n'
    )


def test_what_a_model_says_does_not_act_on_a_terminal_and_is_unchanged_in_a_pipe(capsys, monkeypatch):
    def chunks():
        yield {"response": "\x1b]0;owned\x07\x1b[2J a\r\n"}

    Answer(wraps=False).show(chunks())
    assert capsys.readouterr().out == "\x1b]0;owned\x07\x1b[2J a\r\n"
    monkeypatch.setattr("ollama_zmq.cli.answer.is_terminal", lambda *streams: True)
    monkeypatch.setattr("ollama_zmq.cli.answer.waiting", nullcontext)
    Answer(wraps=False).show(chunks())
    assert capsys.readouterr().out == "\\x1b]0;owned\\x07\\x1b[2J a\n"


def test_thoughts_are_grey_on_a_terminal_and_an_error_is_not(capsys, monkeypatch):
    def chunks():
        yield {"message": {"thinking": "hm"}}
        raise StageLost("worker gone")

    monkeypatch.setattr("ollama_zmq.cli.answer.is_terminal", lambda *streams: True)
    monkeypatch.setattr("ollama_zmq.cli.answer.waiting", nullcontext)
    with pytest.raises(StageLost):
        Answer(wraps=False).show(chunks())
    assert capsys.readouterr().out == f"{GREY_BOLD}Thinking...\n{GREY}hm{DEFAULT}\n"


def test_workers_that_are_missing_are_told_in_grey_to_whoever_watches(ollama, server, monkeypatch):
    loaded = [{"name": "tiny:latest", "missing": ["nobody listens at a:1\x07"]}, {"name": "other", "missing": ["b:1"]}]
    monkeypatch.setattr(Client, "cluster", lambda self: {"workers": [], "models": loaded})
    assert ollama("run", "tiny", "Hi").err == ""
    monkeypatch.setattr("ollama_zmq.cli.answer.is_terminal", lambda *streams: streams == (sys.stderr,))
    assert ollama("run", "tiny", "Hi").err == "without nobody listens at a:1\\x07\n"


def test_verbose_prints_timings_on_stderr(ollama, server):
    printed = ollama("run", "tiny", "Hi", "--verbose")
    assert printed.out == "Hello there!\n\n"
    lines = [line.split(":") for line in printed.err.splitlines()]
    assert [name for name, _ in lines] == [
        "total duration",
        "load duration",
        "prompt eval count",
        "prompt eval duration",
        "prompt eval rate",
        "eval count",
        "eval duration",
        "eval rate",
    ]
    assert printed.err.splitlines()[-2:] == ["eval duration:        250ms", "eval rate:            8.00 tokens/s"]


def test_timings_leave_out_what_is_zero():
    assert timings({"eval_count": 3, "eval_duration": 10**9}) == (
        "eval count:           3 token(s)\neval duration:        1s\neval rate:            3.00 tokens/s"
    )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nope", "Hi"), "model 'nope' not found; make it from a GGUF file with `ollama create nope -f Modelfile`"),
        (("tiny", "--think", "Hi"), '"tiny" does not support thinking'),
        (("tiny", "Hi", "--think=hard"), 'invalid value for think: "hard" (must be true, false, high, medium, low, '),
        (("tiny", "Hi", "--truncate=some"), 'invalid value for --truncate: "some" (must be true or false)'),
        (("tiny", "Hi", "--format", '{"a":' * 50_000), "--format: neither json nor a JSON schema: "),
        (("tiny", "Hi", "--format", "{x"), "--format: neither json nor a JSON schema: "),
        (("tiny", "Hi", "--keepalive", "soon"), "keep_alive: invalid duration 'soon'"),
    ],
)
def test_what_is_wrong_is_one_line(ollama, server, arguments, error):
    printed = ollama("run", *arguments)
    assert (printed.code, printed.out) == (1, "")
    assert printed.err.startswith(f"Error: {error}")
    assert printed.err.count("\n") == 1


def test_an_error_in_the_middle_ends_with_1(ollama, server, broker):
    broker.script = lambda request: [hello(request)[0], RequestFailed(request.request_id, StageLost("worker gone"))]
    printed = ollama("run", "tiny", "Hi")
    assert (printed.code, printed.out, printed.err) == (1, "Hello\n", "Error: worker gone\n")


@pytest.fixture
def session(server, ollama):
    with Client() as client:
        yield Session(client, "tiny", {})


def test_a_conversation_remembers_both_sides(session, broker, capsys):
    assert session.feed("Hi")
    assert session.feed("And you?")
    assert capsys.readouterr().out == "Hello there!\n\n" * 2
    assert session.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there!"},
        {"role": "user", "content": "And you?"},
        {"role": "assistant", "content": "Hello there!"},
    ]
    assert "Hi<|im_end|>\n<|im_start|>assistant\nHello there!<|im_end|>" in prompt_of(broker)


def test_triple_quotes_take_several_lines(session):
    for line in ('"""one', "two"):
        assert session.feed(line)
        assert session.prompt == "... "
    session.feed('three"""')
    assert (session.prompt, session.messages[0]["content"]) == (">>> ", "one\ntwo\nthree")
    session.feed('"""all at once"""')
    assert session.messages[2]["content"] == "all at once"


def test_empty_lines_say_nothing(session, broker):
    assert session.feed("  ")
    assert broker.submitted == []


def test_what_the_server_refuses_is_told_and_forgotten(session, broker, capsys):
    broker.script = lambda request: [RequestFailed(request.request_id, StageLost("worker gone"))]
    assert session.feed("Hi")
    assert (capsys.readouterr().err, session.messages) == ("Error: worker gone\n", [])


def test_an_answer_that_breaks_stays_behind_its_question(session, broker, capsys):
    broker.script = lambda request: [hello(request)[0], RequestFailed(request.request_id, StageLost("worker gone"))]
    assert session.feed("Hi")
    assert (capsys.readouterr().err, session.messages) == (
        "Error: worker gone\n",
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    )


def test_an_interrupted_answer_stays_as_far_as_it_came(session, broker, monkeypatch):
    def interrupted(*_, **__):
        yield {"message": {"role": "assistant", "content": "Hel"}}
        raise KeyboardInterrupt

    monkeypatch.setattr(session.client, "chat", interrupted)
    assert session.feed("Hi")
    assert session.messages[-1] == {"role": "assistant", "content": "Hel"}


@pytest.mark.parametrize("line", ["/bye", "/exit"])
def test_bye_ends(session, line):
    assert not session.feed(line)


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("/set parameter seed 7", "Set parameter 'seed' to '7'\n"),
        ("/set parameter stop a b", "Set parameter 'stop' to 'a, b'\n"),
        ("/set parameter wings 2", "Couldn't set parameter: unknown parameter 'wings'\n"),
        ("/set wordwrap", "Set 'wordwrap' mode.\n"),
        ("/set verbose", "Set 'verbose' mode.\n"),
        ("/set think high", "Set 'think' mode to 'high'.\n"),
        ("/set nothink", "Set 'nothink' mode.\n"),
        ("/set format json", "Set format to 'json' mode.\n"),
        ("/set format xml", "Invalid or missing format. For 'json' mode use '/set format json'\n"),
        ("/set noformat", "Disabled format.\n"),
        ("/set wings", "Unknown command '/set wings'. Type /? for help\n"),
        ("/clear", "Cleared session context\n"),
        ("/wings", "Unknown command '/wings'. Type /? for help\n"),
        ("/load", "Usage:\n  /load <modelname>\n"),
        ("/load nope", "Loading model 'nope'\nCouldn't find model 'nope'\n"),
        ("/load tunedd", "Loading model 'tunedd'\nCouldn't find model 'tunedd'; did you mean tuned?\n"),
        ("/load tuned", "Loading model 'tuned'\n"),
        ("/save", "Usage:\n  /save <modelname>\n"),
        ("/show system", "No system message was specified for this model.\n"),
        ("/show license", "No license was specified for this model.\n"),
        ("/show wings", "Unknown command '/show wings'. Type /? for help\n"),
    ],
)
def test_commands_answer_as_ollamas(session, capsys, line, printed):
    assert session.feed(line)
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("line", "first"),
    [("/?", "  /set "), ("/? shortcuts", "  Ctrl + a"), ("/help show", "  /show info"), ("/set", "  /set parameter")],
)
def test_help_is_on_stderr(session, capsys, line, first):
    session.feed(line)
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()[1].startswith(first)) == ("", True)


def test_what_was_set_reaches_the_server(session, broker, capsys):
    session.feed("/set parameter seed 7")
    session.feed('/set system """Be')
    session.feed('kind."""')
    session.feed("Hi")
    assert broker.submitted[-1].options.seed == 7
    assert "<|im_start|>system\nBe\nkind.<|im_end|>" in prompt_of(broker)
    session.feed("/clear")
    assert session.messages == [{"role": "system", "content": "Be\nkind."}]


def test_a_model_that_is_loaded_begins_without_the_system_message_of_the_last(session, store):
    session.feed("/set system Be kind.")
    session.feed("/load tiny")
    session.feed("/clear")
    assert session.messages == []
    session.feed("/save mine")
    assert store.get("mine").system is None


def test_show_tells_what_was_set(session, capsys):
    session.feed("/set parameter stop a b")
    session.feed("/set parameter num_ctx 64")
    session.feed("/set parameter use_mmap true")
    capsys.readouterr()
    session.feed("/show parameters")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == [
        "User defined parameters:",
        f"  {'stop':<30} [a b]",
        f"  {'num_ctx':<30} 64",
        f"  {'use_mmap':<30} true",
        "",
    ]
    session.feed("/show info")
    assert re.search(r"^    num_ctx +64 +$", capsys.readouterr().out, re.MULTILINE)
    session.feed("/show modelfile")
    assert "PARAMETER num_ctx 64" in capsys.readouterr().out


def test_a_model_that_cannot_think_is_told_of_at_once(session, capsys):
    session.feed("/set think low")
    printed = capsys.readouterr()
    assert printed.out == "Set 'think' mode to 'low'.\n"
    assert printed.err == 'warning: model "tiny" does not support thinking output\n'
    session.feed("/set think hard")
    assert capsys.readouterr().out.startswith('invalid value for think: "hard"')


def test_save_makes_a_model_of_the_conversation(session, store, capsys):
    session.feed("/set parameter seed 7")
    session.feed("/set system Be kind.")
    session.feed("Hi")
    session.feed("/save mine")
    assert capsys.readouterr().out.endswith("Created new model 'mine'\n")
    mine = store.get("mine")
    assert (mine.system, mine.parameters) == ("Be kind.", {"seed": 7})
    assert [message.role for message in mine.messages] == ["system", "user", "assistant"]


def screen(text):
    """The lines that a terminal shows for *text* with its cursor movements."""
    lines, column = [""], 0
    while text:
        if text.startswith("\x1b["):
            number, _, text = text[2:].partition("D")
            column -= int(number)
            text = text.removeprefix("\x1b[K")
            lines[-1] = lines[-1][:column]
        elif text[0] == "\n":
            lines.append("")
            column, text = 0, text[1:]
        else:
            lines[-1] = lines[-1][:column] + text[0]
            column, text = column + 1, text[1:]
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_words_that_do_not_fit_move_to_the_next_line(step):
    text = "the quick brown fox jumps over it\nand rests"
    wrap = WordWrap(20)
    printed = "".join(wrap.feed(text[i : i + step]) for i in range(0, len(text), step))
    assert screen(printed) == ["the quick brown", "fox jumps over", "it", "and rests"]


def test_a_word_longer_than_a_line_is_broken():
    assert screen(WordWrap(15).feed("x" * 25)) == ["x" * 10, "x" * 10, "x" * 5]


def test_without_a_terminal_nothing_is_wrapped():
    assert WordWrap(0).feed("a b " * 50) == "a b " * 50


def test_of_system_messages_that_follow_each_other_the_last_counts(session, broker):
    session.feed("/set system Be kind.")
    session.feed("/set system Be brief.")
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    session.feed("Hi")
    session.feed("/set system Be both.")
    assert session.system == "Be both."
    session.feed("/clear")
    assert session.messages == [{"role": "system", "content": "Be both."}]


def test_thoughts_that_are_hidden_are_not_printed(capsys):
    def chunks():
        yield {"message": {"thinking": "hm"}}
        yield {"message": {"content": "Yes."}}

    Answer(wraps=False, hides_thinking=True).show(chunks())
    assert capsys.readouterr().out == "Yes."


def test_an_error_behind_a_whole_line_begins_no_other(capsys):
    def chunks():
        yield {"message": {"content": "Yes.\n"}}
        raise RequestError("no")

    with pytest.raises(RequestError):
        Answer(wraps=False).show(chunks())
    assert capsys.readouterr().out == "Yes.\n"
