"""``/api/chat`` answers as Ollama's does."""

import pytest

from ollama_zmq.store.create import Recipe
from tests.server.conftest import plain
from tests.server.fake_broker import hello, piece

FINAL = {"prompt_eval_duration": 500_000_000, "eval_count": 2, "eval_duration": 250_000_000}
HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object"}}}


def assistant(content):
    return {"role": "assistant", "content": content}


def test_every_line_has_a_message_of_the_assistant(on_site, broker):
    async def scenario(site):
        lines = await site.lines("/api/chat", model="tiny", messages=[HI])
        assert lines == [
            {"model": "tiny", "message": assistant("Hello"), "done": False},
            {"model": "tiny", "message": assistant(" there!"), "done": False},
            {
                "model": "tiny",
                "message": assistant(""),
                "done": True,
                "done_reason": "stop",
                "prompt_eval_count": len(broker.submitted[0].token_ids),
                **FINAL,
            },
        ]

    on_site(scenario)


def test_without_streaming_all_pieces_are_one_message(on_site):
    async def scenario(site):
        response = await site.post("/api/chat", model="tiny", messages=[HI], stream=False)
        answer = plain(response.json())
        assert (answer["message"], answer["done_reason"]) == (assistant("Hello there!"), "stop")

    on_site(scenario)


async def rendered(site, **fields):
    response = await site.post("/api/chat", _debug_render_only=True, **fields)
    return response.json()["_debug_info"]["rendered_template"]


def test_the_modelfiles_system_comes_first_unless_the_request_has_one(on_site):
    async def scenario(site):
        assert (await rendered(site, model="tuned", messages=[HI])).startswith("<|im_start|>system\nBe brief.")
        own = [{"role": "System", "content": "Shout."}, HI]
        assert (await rendered(site, model="tuned", messages=own)).startswith("<|im_start|>system\nShout.")

    on_site(scenario)


def test_oldest_messages_go_when_the_context_is_short_and_system_and_last_stay(on_site):
    async def scenario(site):
        talk = [{"role": "system", "content": "S"}]
        talk += [{"role": "user", "content": f"old {i} " + "word " * 10} for i in range(5)]
        text = await rendered(site, model="tuned", messages=[*talk, HI])
        assert text.startswith("<|im_start|>system\nS<|im_end|>")
        assert "Hi<|im_end|>" in text
        assert "old 0" not in text
        assert "old 0" in await rendered(site, model="tuned", messages=[*talk, HI], truncate=False)

    on_site(scenario)


@pytest.mark.parametrize(("fields", "reason"), [({}, "load"), ({"keep_alive": 0}, "unload")])
def test_no_messages_load_or_unload(on_site, fields, reason):
    async def scenario(site):
        response = await site.post("/api/chat", model="tiny", messages=[], **fields)
        assert plain(response.json()) == {
            "model": "tiny",
            "message": assistant(""),
            "done": True,
            "done_reason": reason,
        }

    on_site(scenario)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"tools": [TOOL]}, "registry.ollama.ai/library/able:latest does not support tools: this version"),
        ({"think": True}, '"able" does not support thinking: this version'),
        ({"think": "low"}, '"able" does not support thinking: this version'),
        ({"format": "json"}, "format: structured output is not supported yet"),
        ({"format": {}}, "format: structured output is not supported yet"),
    ],
)
def test_what_is_not_built_is_refused_and_not_listed_whatever_the_template_could_do(on_site, store, fields, error):
    template = "{{ range .Messages }}{{ .Content }}{{ .Thinking }}{{ end }}{{ .Tools }}{{ .Think }}"
    store.create("able", Recipe(from_="tiny", template=template))

    async def scenario(site):
        response = await site.post("/api/chat", model="able", messages=[HI], **fields)
        assert (response.status_code, response.json()["error"][: len(error)]) == (400, error)
        assert (await site.post("/api/show", model="able")).json()["capabilities"] == ["completion"]

    on_site(scenario)


def test_a_model_that_thinks_unasked_says_its_thoughts_in_its_content(on_site, store, broker):
    store.create("able", Recipe(from_="tiny", template="{{ .Prompt }}{{ .Think }}{{ .Thinking }}"))
    broker.script = lambda request: [
        piece(request, "<think>Hm.</think>Yes.", 200, -0.5),
        hello(request)[-1],
    ]

    async def scenario(site):
        for fields in ({}, {"think": None}):
            answer = (await site.post("/api/chat", model="able", messages=[HI], stream=False, **fields)).json()
            assert answer["message"] == assistant("<think>Hm.</think>Yes.")

    on_site(scenario)


def test_no_thinking_no_tools_and_no_format_are_no_features(on_site):
    async def scenario(site):
        none = {"think": False, "tools": [], "format": "", "options": {}}
        assert (await site.post("/api/chat", model="tiny", messages=[HI | {"images": []}], **none)).status_code == 200
        nulls = dict.fromkeys(("think", "tools", "format", "options", "keep_alive", "stream", "truncate"))
        assert (await site.post("/api/chat", model="tiny", messages=[HI], **nulls)).status_code == 200

    on_site(scenario)


def test_calls_of_earlier_messages_reach_the_template(on_site, store):
    template = (
        "{{ range .Messages }}{{ range .ToolCalls }}{{ .Function.Name }}{{ .Function.Arguments }}{{ end }}{{ end }}"
    )
    store.create("caller", Recipe(from_="tiny", template=template))
    call = {"id": "call_1", "type": "function", "Function": {"name": "clock", "arguments": {"zone": "UTC"}}}

    async def scenario(site):
        messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "noon"}]
        assert await rendered(site, model="caller", messages=messages) == 'clock{"zone":"UTC"}'

    on_site(scenario)


@pytest.mark.parametrize(
    ("status", "error", "body"),
    [
        (400, "model is required", {"messages": [HI]}),
        (404, "model 'nope' not found", {"model": "nope", "messages": [HI]}),
        (
            400,
            "registry.ollama.ai/library/tiny:latest does not support tools",
            {"model": "tiny", "messages": [HI], "tools": [TOOL]},
        ),
        (400, '"tiny" does not support thinking', {"model": "tiny", "messages": [HI], "think": "high"}),
        (400, '"tiny" does not support images', {"model": "tiny", "messages": [HI | {"images": ["aGk="]}]}),
        (
            400,
            "invalid JSON in the request body: expected array, got str - at $.messages",
            {"model": "tiny", "messages": "Hi"},
        ),
        (
            400,
            "invalid JSON in the request body: object missing required field function - at $.messages[0].tool_calls[0]",
            {"model": "tiny", "messages": [HI | {"tool_calls": [{"id": "call_7"}]}]},
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_runs(on_site, broker, status, error, body):
    async def scenario(site):
        response = await site.post("/api/chat", **body)
        assert (response.status_code, response.json()["error"][: len(error)]) == (status, error)
        assert broker.loads == []

    on_site(scenario)


def test_what_a_message_does_not_have_is_empty(on_site):
    async def scenario(site):
        messages = [HI, {"role": "assistant", "content": None}, {"content": "no role"}, None]
        text = await rendered(site, model="tiny", messages=messages)
        assert "<|im_start|>assistant\n<|im_end|>" in text
        assert "<|im_start|>\nno role<|im_end|>\n<|im_start|>\n<|im_end|>" in text

    on_site(scenario)
