"""Numbers and prompts at the edge of what means something, over HTTP, with an engine behind it."""

import asyncio

import pytest
import structlog

from ollama_zmq.cluster.placement import Demand, WorkerProfile, place
from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.formats.options import Options
from tests.server.engine_broker import settle, with_engine

NUM_CTX = 64


def answer(store, **body):
    """The answer to *body*, not streamed, and the token ids of the prompt as the engine got them."""
    found = {}

    async def scenario(broker, here):
        asking = asyncio.create_task(here.post("/api/generate", model="tiny", stream=False, **body))
        while not asking.done():
            await settle()
            await broker.run()
        found["answer"] = asking.result()
        found["token_ids"] = [request.token_ids for request in broker.submitted]

    with_engine(store, scenario, num_ctx=NUM_CTX)
    return found["answer"], found["token_ids"]


@pytest.mark.parametrize(("num_predict", "expected"), [(1, 1), (0, 1), (-1, 640), (-2, 640), (-99, 640), (10**9, 640)])
def test_num_predict_below_zero_means_ten_contexts_and_zero_one_token(store, num_predict, expected):
    options = {"num_predict": num_predict, "seed": 3, "repeat_penalty": 1.0}
    response, _ = answer(store, prompt="Hi", raw=True, options=options)
    body = response.json()
    assert (response.status_code, body["eval_count"], body["done_reason"]) == (200, expected, "length")


@pytest.mark.parametrize("name", [name for name in Options.__struct_fields__ if name not in ("rpc_servers", "stop")])
def test_no_number_in_any_option_is_a_fault_of_ours(store, name):
    numbers = [0, -1, 1, 0.5, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 1e38, 1e300, True]
    for number in numbers:
        response, _ = answer(store, prompt="Hi", raw=True, options={"num_predict": 2, name: number})
        body = response.json()
        assert response.status_code == 200 or (response.status_code in (400, 503) and name in body["error"]), body


@pytest.mark.parametrize(("n_threads", "status"), [(1024, 200), (1025, 400), (2**31 - 1, 400)])
def test_more_threads_than_a_machine_has_cores_are_refused(on_site, n_threads, status):
    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", options={"num_thread": n_threads})
        assert response.status_code == status
        assert status == 200 or response.json()["error"].startswith(f"num_thread={n_threads}: at most 1024")

    on_site(scenario)


def test_a_prompt_of_only_special_tokens_is_continued(store):
    prompt = "<|endoftext|><|im_end|><|im_start|>"
    response, token_ids = answer(store, prompt=prompt, raw=True, options={"num_predict": 3})
    body = response.json()
    assert (response.status_code, token_ids, body["prompt_eval_count"], body["eval_count"]) == (200, [(0, 2, 1)], 3, 3)


def test_a_prompt_whose_template_leaves_nothing_of_it_is_refused(store):
    response, _ = answer(store, prompt="Hi", template="{{ .System }}")
    error = "token_ids is empty: there must be at least one token to go on from"
    assert (response.status_code, response.json()) == (400, {"error": error})


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_an_empty_prompt_loads_the_model_and_says_so(on_site, broker, path):
    async def scenario(site):
        body = (await site.post(path, model="tiny", prompt="", messages=[])).json()
        assert (body["done"], body["done_reason"]) == (True, "load")
        assert (len(broker.loads), broker.submitted) == (1, [])

    on_site(scenario)


@pytest.mark.parametrize(
    ("num_ctx", "warned"), [(512, []), (513, [(513, 512)]), (10**9, [(10**9, 512)]), (4096, []), (None, [])]
)
def test_a_context_beyond_the_trained_one_is_reduced_with_a_warning_unless_nobody_asked_for_it(
    on_site, broker, num_ctx, warned
):
    async def scenario(site):
        with structlog.testing.capture_logs() as logs:
            await site.post("/api/generate", model="tiny", options={} if num_ctx is None else {"num_ctx": num_ctx})
        found = [(log["num_ctx"], log["trained"]) for log in logs if log["event"] == "context.reduced"]
        assert (found, [wanted.num_ctx for wanted in broker.loads]) == (warned, [512])

    on_site(scenario)


def test_a_context_beyond_memory_is_refused_with_the_one_that_would_fit(on_site, broker):
    model = Demand((100,) * 4, kv_nbytes=6400, scratch_nbytes=0, head_nbytes=0, num_ctx=6400)
    with pytest.raises(OutOfDeviceMemory) as caught:
        place(model, [], WorkerProfile("local", 4 * 110 + 4 * 1900, 1e10))
    broker.load_error = caught.value

    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", prompt="Hi", options={"num_ctx": 6400})
        error = response.json()["error"]
        assert response.status_code == 503
        assert error == caught.value.message
        assert "the KV cache of num_ctx 6400" in error
        assert "num_ctx 1856 would fit" in error

    on_site(scenario)
