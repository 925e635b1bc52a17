"""``/api/generate`` answers as Ollama's does."""

import asyncio
import json

import pytest

from ollama_zmq.cluster.placement import Policy
from ollama_zmq.engine.requests import RequestFailed
from ollama_zmq.errors import ContextOverflow, OutOfDeviceMemory, StageLost
from ollama_zmq.formats.modelfile import ChatMessage
from ollama_zmq.store.create import Recipe
from tests.server.conftest import SERVERS, plain
from tests.server.fake_broker import hello

FINAL = {"prompt_eval_duration": 500_000_000, "eval_count": 2, "eval_duration": 250_000_000}


def test_streams_one_line_per_piece_and_ends_with_the_counts(on_site, broker):
    async def scenario(site):
        lines = await site.lines("/api/generate", model="tiny", prompt="Hi")
        [request] = broker.submitted
        assert lines == [
            {"model": "tiny", "response": "Hello", "done": False},
            {"model": "tiny", "response": " there!", "done": False},
            {
                "model": "tiny",
                "response": "",
                "done": True,
                "done_reason": "stop",
                "context": [*request.token_ids, 200, 201],
                "prompt_eval_count": len(request.token_ids),
                **FINAL,
            },
        ]

    on_site(scenario)


def test_without_streaming_all_pieces_are_one_object(on_site):
    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi", stream=False, raw=True)
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        assert plain(response.json()) == {
            "model": "tiny",
            "response": "Hello there!",
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 2,
            **FINAL,
        }

    on_site(scenario)


def test_the_prompt_is_put_into_the_chat_template(on_site):
    async def scenario(site):
        response = await site.post("/api/generate", model="tuned", prompt="Hi", _debug_render_only=True)
        assert plain(response.json()) == {
            "model": "tuned",
            "response": "",
            "done": False,
            "_debug_info": {
                "rendered_template": "<|im_start|>system\nBe brief.<|im_end|>\n"
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            },
        }

    on_site(scenario)


@pytest.mark.parametrize(
    ("fields", "rendered"),
    [
        ({"raw": True}, "Hi"),
        ({"template": "<{{ .System }}|{{ .Prompt }}>"}, "<Be brief.|Hi>"),
        ({"template": "<{{ .System }}|{{ .Prompt }}>", "system": "Shout."}, "<Shout.|Hi>"),
        ({"template": "<{{ .System }}|{{ .Prompt }}>", "system": ""}, "<Be brief.|Hi>"),
        ({"raw": True, "template": "", "system": "", "suffix": ""}, "Hi"),
        ({"template": "{{ .Prompt }}_{{ .Suffix }}", "suffix": "end"}, "Hi_end"),
    ],
)
def test_raw_template_system_and_suffix_shape_the_prompt(on_site, fields, rendered):
    async def scenario(site):
        response = await site.post("/api/generate", model="tuned", prompt="Hi", _debug_render_only=True, **fields)
        assert response.json()["_debug_info"] == {"rendered_template": rendered}

    on_site(scenario)


def test_a_modelfiles_messages_come_first_unless_a_context_goes_on(on_site, store):
    examples = [ChatMessage("user", "2+2?"), ChatMessage("assistant", "4")]
    store.create("taught", Recipe(from_="tiny", messages=examples))

    async def scenario(site):
        body = {"model": "taught", "prompt": "3+3?", "_debug_render_only": True}
        first = (await site.post("/api/generate", **body)).json()["_debug_info"]["rendered_template"]
        again = (await site.post("/api/generate", **body, context=[])).json()["_debug_info"]["rendered_template"]
        assert first.startswith("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n")
        assert again == "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n"

    on_site(scenario)


def test_what_is_rendered_shows_the_context_it_goes_on_from(on_site, broker):
    async def scenario(site):
        body = {"model": "tiny", "prompt": "Hi", "_debug_render_only": True}
        alone = (await site.post("/api/generate", **body)).json()["_debug_info"]["rendered_template"]
        after = (await site.post("/api/generate", **body, context=[5, 6])).json()["_debug_info"]["rendered_template"]
        assert after.endswith(alone)
        assert len(after) > len(alone)
        wrong = await site.post("/api/generate", **body, context=[999999])
        assert (wrong.status_code, "context[0]=999999" in wrong.text) == (400, True)

    on_site(scenario)


def test_a_template_of_the_request_that_is_none_is_not_the_models_fault(on_site):
    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi", template="{{ if }}")
        assert response.status_code == 400
        assert response.json()["error"].startswith("the request's template does not parse: ")

    on_site(scenario)


def test_context_of_an_earlier_answer_comes_first(on_site, broker):
    async def scenario(site):
        await site.lines("/api/generate", model="tiny", prompt="Hi", context=[5, 6])
        await site.lines("/api/generate", model="tiny", prompt="Hi")
        again, first = broker.submitted
        assert again.token_ids == (5, 6, *first.token_ids)

    on_site(scenario)


def test_logprobs_carry_the_bytes_of_their_token(on_site):
    async def scenario(site):
        first, *_ = await site.lines("/api/generate", model="tiny", prompt="Hi", logprobs=True, top_logprobs=1)
        entry = {"token": "Hello", "logprob": -0.5, "bytes": list(b"Hello")}
        assert first["logprobs"] == [{**entry, "top_logprobs": [entry]}]

    on_site(scenario)


def test_an_empty_prompt_loads_the_model(on_site, broker):
    async def scenario(site):
        response = await site.post("/api/generate", model="tiny")
        assert plain(response.json()) == {"model": "tiny", "response": "", "done": True, "done_reason": "load"}
        assert (len(broker.loads), broker.submitted) == (1, [])

    on_site(scenario)


def test_an_empty_prompt_with_keep_alive_zero_unloads_it(on_site, broker):
    async def scenario(site):
        await site.post("/api/generate", model="tiny")
        response = await site.post("/api/generate", model="tiny", keep_alive=0)
        assert plain(response.json()) == {"model": "tiny", "response": "", "done": True, "done_reason": "unload"}
        assert (broker.n_unloads, broker.models) == (1, [])

    on_site(scenario)


def test_options_of_the_request_win_over_the_modelfiles(on_site, broker):
    async def scenario(site):
        await site.lines("/api/generate", model="tuned", prompt="Hi", options={"temperature": 0.1, "seed": 7})
        options = broker.submitted[0].options
        assert (options.temperature, options.seed, options.stop, options.top_k) == (0.1, 7, ("END",), 40)

    on_site(scenario)


@pytest.mark.parametrize(
    ("model", "options", "servers"),
    [
        ("tiny", {}, ("10.0.0.1:50052", "10.0.0.2:50053")),
        ("tuned", {}, ("10.9.9.9:1",)),
        ("tuned", {"rpc_servers": "10.7.7.7:7"}, ("10.7.7.7:7",)),
        ("tuned", {"rpc_servers": ""}, ()),
    ],
)
def test_workers_of_the_request_win_over_the_modelfiles_and_those_over_the_environments(
    on_site, broker, model, options, servers
):
    async def scenario(site):
        await site.post("/api/generate", model=model, options=options)
        assert broker.loads[0].rpc_servers == servers

    on_site(scenario, rpc_servers=SERVERS)


def test_the_environments_policy_reaches_the_planner(on_site, broker):
    async def scenario(site):
        await site.post("/api/generate", model="tiny")
        assert broker.loads[0].policy is Policy.FASTEST

    on_site(scenario, rpc_policy="fastest")


@pytest.mark.parametrize(
    ("settings", "options", "num_ctx"),
    [({}, {}, 512), ({"context_length": 128}, {}, 128), ({"context_length": 128}, {"num_ctx": 32}, 32)],
)
def test_the_context_is_the_requests_or_the_environments_and_never_longer_than_trained(
    on_site, broker, settings, options, num_ctx
):
    async def scenario(site):
        await site.post("/api/generate", model="tiny", options=options)
        assert broker.loads[0].num_ctx == num_ctx

    on_site(scenario, **settings)


def test_unknown_options_are_ignored(on_site, broker):
    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi", stream=False, options={"wings": 2})
        assert response.status_code == 200

    on_site(scenario)


@pytest.mark.parametrize(
    ("status", "error", "body"),
    [
        (404, "model 'nope' not found", {"model": "nope", "prompt": "x"}),
        (404, "model '' not found", {"prompt": "x"}),
        (400, "invalid model name", {"model": "../../etc/passwd"}),
        (400, 'option "num_ctx" must be of type integer', {"model": "tiny", "options": {"num_ctx": "big"}}),
        (400, "top_logprobs must be between 0 and 20", {"model": "tiny", "top_logprobs": 21}),
        (
            400,
            "raw mode does not support template, system, or context",
            {"model": "tiny", "prompt": "x", "raw": True, "system": "y"},
        ),
        (400, '"tiny" does not support thinking', {"model": "tiny", "prompt": "x", "think": True}),
        (
            400,
            "registry.ollama.ai/library/tiny:latest does not support insert",
            {"model": "tiny", "prompt": "x", "suffix": "y"},
        ),
        (
            400,
            '"tiny" does not support images: this version reads text only',
            {"model": "tiny", "prompt": "x", "images": ["aGk="]},
        ),
        (
            400,
            "format: structured output is not supported yet; leave it out and ask for JSON in the prompt",
            {"model": "tiny", "prompt": "x", "format": "json"},
        ),
        (
            400,
            "keep_alive: invalid duration 'soon': a number with a unit is wanted, such as 5m, 1h30m or 1.5s",
            {"model": "tiny", "keep_alive": "soon"},
        ),
        (
            400,
            "rpc server 'box:port': expected host:port, as in 10.0.0.10:50052",
            {"model": "tiny", "options": {"rpc_servers": "box:port"}},
        ),
        (
            400,
            'invalid think value: "hard" (must be "low", "medium", "high", "max", true or false)',
            {"model": "tiny", "think": "hard"},
        ),
        (
            400,
            "invalid JSON in the request body: expected str, got int - at $.prompt",
            {"model": "tiny", "prompt": 3},
        ),
        (400, "context[1]=999999: not a token of this model", {"model": "tiny", "prompt": "x", "context": [1, 999999]}),
    ],
)
def test_what_is_wrong_is_named_and_nothing_runs(on_site, broker, status, error, body):
    async def scenario(site):
        response = await site.post("/api/generate", **body)
        assert (response.status_code, response.json()["error"][: len(error)]) == (status, error)
        assert broker.submitted == []

    on_site(scenario)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "missing request body"),
        (b"{", "invalid JSON in the request body: expecting property name"),
        (b'{"prompt": NaN}', "invalid JSON in the request body: not a JSON value: NaN"),
        (b"[1]", "invalid JSON in the request body: expected object, got array"),
        (b"\xff\xfe", "invalid JSON in the request body: "),
        (b'{"prompt": ' + b"[" * 100_000, "invalid JSON in the request body: "),
    ],
)
def test_a_body_that_is_no_request_is_refused(on_site, content, error):
    async def scenario(site):
        response = await site.http.post("/api/generate", content=content)
        assert (response.status_code, response.json()["error"][: len(error)]) == (400, error)

    on_site(scenario)


def test_null_means_absent(on_site):
    async def scenario(site):
        body = {"model": "tiny", "prompt": "Hi", "system": None, "options": None, "format": None, "keep_alive": None}
        response = await site.post("/api/generate", stream=False, **body)
        assert response.status_code == 200

    on_site(scenario)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ContextOverflow("prompt too long"), 400), (StageLost("worker gone"), 503), (OutOfDeviceMemory("full"), 503)],
)
def test_an_error_before_the_first_piece_has_its_own_status(on_site, broker, error, status):
    broker.script = lambda request: [RequestFailed(request.request_id, error)]

    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi")
        assert (response.status_code, response.json()) == (status, {"error": error.message})

    on_site(scenario)


def test_an_error_after_the_first_piece_is_the_last_line(on_site, broker):
    broker.script = lambda request: [hello(request)[0], RequestFailed(request.request_id, StageLost("worker gone"))]

    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi")
        first, last = (json.loads(line) for line in response.text.splitlines())
        assert (response.status_code, plain(first)["response"], last) == (200, "Hello", {"error": "worker gone"})

    on_site(scenario)


def test_an_unforeseen_error_is_not_shown(on_site, broker):
    def explode(request):
        raise ZeroDivisionError("secret")

    broker.script = explode

    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi")
        assert (response.status_code, response.json()) == (500, {"error": "internal error"})

    on_site(scenario)


def test_a_failed_load_is_told_and_the_next_request_tries_again(on_site, broker):
    broker.load_error = OutOfDeviceMemory("worker a needs 2 GB of 1 GB")

    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi")
        assert (response.status_code, response.json()) == (503, {"error": "worker a needs 2 GB of 1 GB"})
        broker.load_error = None
        assert len(await site.lines("/api/generate", model="tiny", prompt="Hi")) == 3

    on_site(scenario)


def test_a_stopping_server_ends_its_streams_with_an_error(on_site, broker):
    broker.script = None

    async def scenario(site):
        asking = asyncio.create_task(site.post("/api/generate", model="tiny", prompt="Hi"))
        while not broker.submitted:
            await asyncio.sleep(0)
        site.services.stop()
        response = await asking
        assert (response.status_code, response.json()) == (503, {"error": "the server is stopping"})
        assert broker.canceled == [broker.submitted[0].request_id]

    on_site(scenario)
    assert broker.is_closed
