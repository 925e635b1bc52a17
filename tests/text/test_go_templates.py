"""Go templates give what Ollama's own rules give."""

from datetime import datetime

import pytest

from ollama_zmq.errors import RequestError
from ollama_zmq.text.go_templates import GoTemplate, collate
from ollama_zmq.text.go_values import go_json
from tests.text.test_templates import ADD, CHAT, TOOL_CHAT, USER

LLAMA3 = (
    "{{ if .System }}<|system|>{{ .System }}<|eot|>{{ end }}{{ if .Prompt }}<|user|>{{ .Prompt }}<|eot|>{{ end }}"
    "<|assistant|>{{ .Response }}<|eot|>"
)


def render(source: str, messages=USER, **options) -> str:
    return GoTemplate(source, clock=lambda: datetime(2025, 2, 3)).render(messages, **options)


def test_an_old_template_runs_once_per_turn_and_is_cut_where_the_model_speaks() -> None:
    assert render(LLAMA3, CHAT) == (
        "<|system|>be brief<|eot|><|user|>hi<|eot|><|assistant|>hello<|eot|><|user|>2+2?<|eot|><|assistant|>"
    )


def test_a_begun_answer_is_left_open() -> None:
    messages = [*USER, {"role": "assistant", "content": "It is"}]
    assert render(LLAMA3, messages) == "<|user|>2+2?<|eot|><|assistant|>It is"


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ .Prompt }}", "2+2?"),
        ("[{{ .Prompt }}]{{ if .Response }}{{ .Response }}</s>{{ end }}", "[2+2?]"),
        ("{{ if .System }}S{{ else if .Prompt }}P{{ .Response }} gone{{ end }} gone", "P"),
        (
            '{{ if .Prompt }}{{ template "t" . }}{{ .Response }}gone{{ end }}{{ define "t" }}T{{ .Prompt }}{{ end }}',
            "T2+2?",
        ),
        ("{{ .Response }}", ""),
    ],
)
def test_the_last_turn_is_cut_behind_the_response(source: str, prompt: str) -> None:
    assert render(source) == prompt


def test_a_template_with_messages_gets_them_all() -> None:
    source = "{{ .System }}|{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Role }}:{{ .Content }};{{ end }}"
    assert render(source, CHAT) == "be brief|0system:be brief;1user:hi;2assistant:hello;3user:2+2?;"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("string", "string"), (["string"], "string"), (["string", "null"], "[string null]"), ([], ""), (None, "")],
)
def test_a_type_is_printed_as_go_prints_it(kind: object, said: str) -> None:
    """``PropertyType.String`` of Ollama's api/types.go."""
    tool = {"function": {"name": "f", "parameters": {"properties": {"x": {"type": kind}}}}}
    source = (
        "{{ range .Tools }}{{ range .Function.Parameters.Properties }}<{{ .Type }}>{{ end }}{{ end }}{{ .Messages }}"
    )
    assert render(source, [], tools=[tool]).startswith(f"<{said}>")


def test_tools_and_calls_print_as_json() -> None:
    source = (
        "{{ range .Tools }}{{ .Function.Name }} {{ .Function.Parameters.Required }} {{ . }}{{ end }}|{{ .Tools }}|"
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Name }} {{ .Function.Arguments }} {{ .ID }}{{ end }}"
        "{{ if .ToolName }}{{ .ToolName }} {{ .ToolCallID }}{{ end }}{{ end }}"
    )
    tool = go_json(ADD)
    assert render(source, TOOL_CHAT, tools=[ADD]) == (
        f'add [a] {tool}|[{tool}]|add {{"a":2}} call_ab12cd34add call_ab12cd34'
    )


CALL = {
    "function": {"name": "f", "arguments": {"n": None, "t": True, "l": [1, "a", None], "m": {"b": 1.5, "a": False}}}
}


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        ("{{ .Foo }}", "<no value>"),
        ("{{- .Foo -}}", "<no value>"),
        ('{{ with $x := .Foo }}{{ $x }}{{ else }}no{{ end }}', "no"),
        ("{{ $x := .Foo }}{{ $x }}", "<no value>"),
        ("{{ $x := 1 }}{{ $x = 2 }}{{ $x }}", "2"),
        ("{{ if .Foo }}yes{{ end }}{{ range .Foo }}x{{ else }}none{{ end }}", "none"),
        ('{{ define "d" }}{{ .Foo }}{{ end }}{{ template "d" . }}', "<no value>"),
        ("{{ .Think }} {{ not .Think }}", "true false"),
        ('{{ eq "a" "a" }} {{ and .Think .Foo }}', "true <no value>"),
        ("{{ print .Foo }} {{ .Foo | print }} {{ print true 1.5 }}", "<nil> <nil> true 1.5"),
        ('{{ printf "%v %v" .Foo .Think }} {{ json .Foo }}', "<nil> true null"),
        ('{{ printf "%s|%v" "a" 1 | print }}{{ "}}" }}{{ `x` }}', "a|1}}x"),
        ("{{/* a comment */}}{{ 1.0 }} {{ 1e6 }} {{ 7 }}", "1 1e+06 7"),
        ("{{ range .Messages }}{{ range .ToolCalls }}{{ with .Function.Arguments }}"
         "{{ .n }} {{ .t }} {{ .l }} {{ .m }} {{ .none }}{{ end }}{{ end }}{{ end }}",
         "<no value> true [1 a <nil>] map[a:false b:1.5] <no value>"),
        ("{{ range .Messages }}{{ range .ToolCalls }}{{ printf `%v` .Function.Arguments.l }}{{ end }}{{ end }}",
         "[1 a <nil>]"),
    ],
)  # fmt: skip
def test_values_are_printed_as_go_prints_them(action: str, shown: str) -> None:
    """By the rules of text/template (``evalPipeline``, ``printValue``) with missingkey=zero, and of fmt's ``%v``."""
    messages = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert render("{{ if .Messages }}{{ end }}" + action, messages, think=True) == shown


def test_json_is_escaped_as_go_escapes_it() -> None:
    assert go_json({"b": "<&>é\u2028", "a": [1, True, None]}) == (
        '{"b":"\\u003c\\u0026\\u003eé\\u2028","a":[1,true,null]}'
    )


def test_the_dates_come_from_the_clock() -> None:
    assert render("{{ currentDate }} {{ yesterdayDate }}") == "2025-02-03 2025-02-02"


def test_thinking_variables() -> None:
    source = "{{ if .IsThinkSet }}set{{ if .Think }} on{{ end }}{{ end }}{{ .ThinkLevel }}{{ if .Messages }}.{{ end }}"
    shown = [render(source, think=think) for think in (None, True, False, "low")]
    assert shown == [".", "set on.", "set.", "set onlow."]


def test_insert_fills_prompt_and_suffix() -> None:
    template = GoTemplate("{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}")
    assert template.render_insert("a", "b") == "<P>a<S>b<M>"
    assert template.takes_suffix
    with pytest.raises(RequestError, match="does not support insert"):
        GoTemplate("{{ .Prompt }}").render_insert("a", "b")


def test_neighbours_of_the_same_role_are_merged() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b", "images": ["1"]},
        {"role": "user", "content": "c", "images": ["2"]},
        {"role": "tool", "content": "d"},
        {"role": "tool", "content": "e"},
        {"role": "system", "content": "f"},
    ]
    system, merged = collate(messages)
    assert system == "a\n\nf"
    assert merged == [messages[0], {"role": "user", "content": "b\n\nc", "images": ["1", "2"]}, *messages[3:]]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "source",
    [
        "{{ if .x }}",
        "{{ nonsense .x }}",
        "{{ .Messages.append 1 }}",
        "{{ range 1000000000 }}{{ end }}",
        '{{ printf "%1000000000d" 1 }}{{ .Messages }}',
        '{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}{{ .Messages }}',
    ],
)
def test_a_bad_template_is_a_request_error(source: str) -> None:
    with pytest.raises(RequestError, match="template error: "):
        render(source)


@pytest.mark.parametrize("before", ["", '{{ "}}" }}', "{{/* don't */}}", "it's {{ `}}` }} "])
def test_a_number_without_end_is_refused_before_it_is_read(before: str) -> None:
    """gotpl's lexer would take minutes."""
    for action in ("{{%s}}", '{{ printf "}}" %s }}', "{{ .Prompt | index %s }}"):
        with pytest.raises(RequestError, match="a number of more than 100 characters"):
            GoTemplate(before + action % ("0" * 100_000))


def test_long_lines_outside_of_actions_are_text() -> None:
    line = "-" * 200 + "1" * 200
    assert GoTemplate(f"{line}{{{{ .Prompt }}}}").render([{"role": "user", "content": "hi"}]) == f"{line}hi"


GROWN = '{{$a := "xxxxxxxxxxxxxxx"}}' + '{{$a = printf "%s%s" $a $a}}' * 20


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "body",
    [
        "{{$a}}{{.Prompt}}{{.Response}}",
        "{{range .Messages}}{{range $.Messages}}{{$b := printf \"%s%s\" $a $a}}{{end}}{{end}}",
        "{{range .Messages}}{{range $.Messages}}{{if eq $a (slice $a 0)}}{{end}}{{end}}{{end}}",
        "{{range .Messages}}{{range $.Messages}}{{if (html $a)}}{{end}}{{end}}{{end}}",
    ],
)  # fmt: skip
def test_the_calls_of_all_turns_share_one_budget(body: str) -> None:
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(RequestError, match=r"than is allowed|output character budget"):
        GoTemplate(GROWN + body).render([*turn * 60, turn[0]])


@pytest.mark.timeout(60)
def test_a_tree_of_templates_that_call_each_other_twice_ends() -> None:
    tree = "".join(f'{{{{define "t{i + 1}"}}}}{f"{{{{template `t{i}`}}}}" * 2}{{{{end}}}}' for i in range(60))
    with pytest.raises(RequestError, match="than is allowed"):
        GoTemplate('{{define "t0"}}{{end}}' + tree + "{{template `t60`}}{{.Prompt}}").render([])
