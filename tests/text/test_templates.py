"""Chat templates of real models render; what a template may not do, it cannot do."""

from datetime import datetime
from pathlib import Path

import pytest

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.text.go_templates import GoTemplate
from ollama_zmq.text.jinja_templates import JinjaTemplate
from ollama_zmq.text.model_template import chat_template
from ollama_zmq.text.templates import PlainTemplate, check_size
from ollama_zmq.text.tokenizer import load_tokenizer
from tests.text.vocabularies import byte_pairs

USER = [{"role": "user", "content": "2+2?"}]
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    *USER,
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds <a> & é",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "one"}},
            "required": ["a"],
        },
    },
}
CALL = {"id": "call_ab12cd34", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL_CHAT = [
    *CHAT,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "tool_name": "add", "tool_call_id": "call_ab12cd34"},
]
WITHOUT_SYSTEM = {"google-gemma-2-2b-it.jinja"}
CHANGES_ITS_LISTS = {"Kimi-K2-Instruct.jinja", "Kimi-K2-Thinking.jinja"}


def rendered(source: str, messages=USER, **options) -> str:
    return JinjaTemplate(source, clock=lambda: datetime(2025, 2, 3)).render(messages, **options)


def published(folder: Path) -> list[tuple[str, JinjaTemplate]]:
    paths = sorted((folder / "templates").glob("*.jinja"))
    assert len(paths) > 60
    return [(path.name, JinjaTemplate(path.read_text(), bos="<s>", eos="</s>")) for path in paths]


def test_every_published_template_renders_a_conversation(vocabularies_path: Path) -> None:
    for name, template in published(vocabularies_path):
        prompt = template.render(CHAT[1:] if name in WITHOUT_SYSTEM else CHAT)
        assert prompt.find("hi") < prompt.find("hello") < prompt.find("2+2?"), name


def test_every_published_template_renders_tools(vocabularies_path: Path) -> None:
    for name, template in published(vocabularies_path):
        if name not in WITHOUT_SYSTEM | CHANGES_ITS_LISTS:
            prompt = template.render(TOOL_CHAT, tools=[ADD])
            assert "2+2?" in prompt, name
            assert "add" in prompt or not template.takes_tools, name


def test_a_published_template_that_refuses_system_messages_says_so(vocabularies_path: Path) -> None:
    path = vocabularies_path / "templates" / "google-gemma-2-2b-it.jinja"
    with pytest.raises(RequestError, match="the model's chat template refuses: System role not supported"):
        JinjaTemplate(path.read_text()).render(CHAT)


def test_chatml() -> None:
    assert rendered(CHATML, CHAT[2:]) == (
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(CHATML, add_generation_prompt=False) == "<|im_start|>user\n2+2?<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "2+2?"}]'),
        ("{{ '<&é>' | tojson }}", '"<&é>"'),
        ("{{ {'b': 1, 'a': [1, 2]} | tojson(indent=1) }}", '{\n "b": 1,\n "a": [\n  1,\n  2\n ]\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "03 Feb 2025"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "2+2?"),
        ("{% if tools %}T{% else %}{{ tools is none }}{% endif %}", "True"),
        ("{% for m in messages %}{{ loop.first }} {{ loop.last }} {{ loop.length }}{% endfor %}", "True True 1"),
        ("{{ enable_thinking is defined }}", "False"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ messages[0].thinking is defined }}", "False"),
    ],
)
def test_what_templates_rely_on(source: str, prompt: str) -> None:
    assert rendered(source) == prompt


def test_thinking_is_switched_by_the_names_in_use() -> None:
    source = "{{ enable_thinking }} {{ thinking }} {{ reasoning_effort is defined and reasoning_effort }}"
    assert rendered(source, think=False) == "False False False"
    assert rendered(source, think="high") == "True True high"


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(RequestError, match="the model's chat template refuses: roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template: line 2: "):
        JinjaTemplate("ok\n{% if %}")


def test_a_bos_the_tokenizer_adds_is_not_written_twice() -> None:
    tokenizer = load_tokenizer(byte_pairs("<s>") | {"tokenizer.ggml.add_bos_token": True})
    tokenizer.bos_id = tokenizer.token_id("<s>")
    metadata = {"tokenizer.chat_template": "{{ bos_token }}x{{ bos_token }}{{ eos_token }}"}
    assert chat_template(metadata, tokenizer=tokenizer).render(USER) == "x<s><|im_end|>"
    tokenizer.add_bos = False
    assert chat_template(metadata, tokenizer=tokenizer).render(USER) == "<s>x<s><|im_end|>"


def test_the_tool_template_is_used_when_there_are_tools() -> None:
    template = chat_template(
        {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "{{ tools | length }}"}
    )
    assert (template.render(USER), template.render(USER, tools=[ADD])) == ("plain", "1")


def test_a_modelfile_template_wins_and_no_template_is_plain_words() -> None:
    metadata = {"tokenizer.chat_template": CHATML}
    assert chat_template(metadata, "G {{ .Prompt }}:").render(USER) == "G 2+2?:"
    template = chat_template({})
    assert isinstance(template, PlainTemplate)
    assert template.render(CHAT) == "hihello2+2?"


def test_insert_needs_a_place_for_the_suffix() -> None:
    for template in (JinjaTemplate(CHATML), PlainTemplate()):
        with pytest.raises(RequestError, match="does not support insert"):
            template.render_insert("a", "b")


def test_rendering_changes_no_message() -> None:
    call = {"id": "call_ab12cd34", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert rendered("{{ messages[0].tool_calls[0].type }} with length 9 {{ messages[0].tool_calls[0].id }}", messages)
    assert messages == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]


HALF_AN_ANSWER = [*USER, {"role": "assistant", "content": " one, two, "}]


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        (CHATML, "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n one, two, "),
        (CHATML.replace("message.content", "message.content | trim"), "<|im_start|>assistant\none, two, "),
        ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}", "two, "),
    ],
)
def test_an_answer_that_was_begun_goes_on_where_it_ends(source: str, prompt: str) -> None:
    assert rendered(source, HALF_AN_ANSWER).endswith(prompt)


def test_a_template_that_shows_no_answers_opens_a_turn() -> None:
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}|{{ add_generation_prompt }}"
    assert rendered(source, HALF_AN_ANSWER) == "2+2?|True"


def test_an_answer_of_tool_calls_is_complete() -> None:
    assert rendered(CHATML, TOOL_CHAT[:-1]).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_every_published_template_goes_on_with_an_answer(vocabularies_path: Path) -> None:
    words = "one, two,"
    for name, template in published(vocabularies_path):
        prompt = template.render([*USER, {"role": "assistant", "content": words}])
        assert prompt.endswith(words), name


@pytest.mark.parametrize(("metadata", "go"), [({"tokenizer.chat_template": "{% if %}"}, None), ({}, "{{ if }}")])
def test_a_text_that_is_no_template_fails_when_it_is_rendered(metadata: dict[str, object], go: str | None) -> None:
    template = chat_template(metadata, go)
    assert template.defect
    assert template.source == (go or metadata["tokenizer.chat_template"])
    with pytest.raises(RequestError, match=r"does not parse: .*; create the model with another TEMPLATE"):
        template.render(USER)


@pytest.mark.parametrize("template", [JinjaTemplate, GoTemplate])
@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("a" * 131_073, "131073 characters, more than 131072"),
        ("{{1}}" * 4097, "4097 actions, more than 4096"),
        ("{{1}}" * 2049 + "{% if 1 %}{% endif %}" * 1024, "4097 actions, more than 4096"),
    ],
)
def test_a_template_that_would_take_seconds_to_compile_is_refused(template: type, source: str, named: str) -> None:
    with pytest.raises(RequestError, match=f"the template has {named}"):
        template(source)


def test_a_template_of_as_many_characters_and_actions_as_are_allowed_is_none_too_large() -> None:
    check_size("{{" * 2048 + "{%" * 2048 + "a" * (131_072 - 2 * 4096))
