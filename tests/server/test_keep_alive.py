"""Every form of ``keep_alive``, several models in ``/api/ps``, and what a context may be."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from ollama_zmq.store.create import Recipe

TWENTY_YEARS_S = 20 * 365 * 86400


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5m", 300), (300, 300), ("24h", 86400), ("1.5s", 1.5), (0.5, 0.5), (None, 300)],
)
def test_a_model_stays_for_its_keep_alive(on_site, value, seconds):
    async def scenario(site):
        await site.post("/api/generate", model="tiny", keep_alive=value)
        [model] = (await site.http.get("/api/ps")).json()["models"]
        left = (datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)).total_seconds()
        assert seconds - 30 < left <= seconds

    on_site(scenario)


@pytest.mark.parametrize("value", [-1, "-1m", -0.5, "-1s", -(10**400), 10**400, "2562047h", 1e300])
def test_a_keep_alive_below_zero_or_beyond_bounds_is_for_ever(on_site, value):
    async def scenario(site):
        await site.post("/api/generate", model="tiny", keep_alive=value)
        [model] = (await site.http.get("/api/ps")).json()["models"]
        left = datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)
        assert left.total_seconds() > TWENTY_YEARS_S

    on_site(scenario)


@pytest.mark.parametrize("value", [0, "0", "0s", 0.0])
def test_zero_unloads(on_site, value):
    async def scenario(site):
        await site.post("/api/generate", model="tiny")
        answer = (await site.post("/api/generate", model="tiny", keep_alive=value)).json()
        assert answer["done_reason"] == "unload"
        assert (await site.http.get("/api/ps")).json() == {"models": []}

    on_site(scenario)


@pytest.mark.parametrize("value", ["soon", "", "300", True, [5], {"s": 5}])
def test_what_is_no_duration_is_refused(on_site, value):
    async def scenario(site):
        response = await site.post("/api/generate", model="tiny", keep_alive=value)
        assert response.status_code == 400
        assert "keep_alive" in response.json()["error"]

    on_site(scenario)


def test_all_loaded_models_are_listed_the_one_that_stays_longest_first(on_site, store):
    path = store.root / "second.gguf"
    path.write_bytes(store.get("tiny").gguf_path.read_bytes() + bytes(32))
    digest = store.blobs.add_file(path).digest
    store.create("second", Recipe(files={"second.gguf": digest}))

    async def scenario(site):
        await site.post("/api/generate", model="tiny", keep_alive="1h")
        await site.post("/api/generate", model="second", keep_alive="2h")
        models = (await site.http.get("/api/ps")).json()["models"]
        assert [model["name"] for model in models] == ["second:latest", "tiny:latest"]
        await site.post("/api/generate", model="second", keep_alive=0)
        assert [model["name"] for model in (await site.http.get("/api/ps")).json()["models"]] == ["tiny:latest"]

    on_site(scenario)


@pytest.mark.parametrize(("asked", "loaded"), [(64, 64), (10**9, 512), (1, 4), (-5, 4), (0, 4)])
def test_a_context_is_at_most_what_the_model_was_trained_for_and_at_least_four(on_site, broker, asked, loaded):
    async def scenario(site):
        await site.post("/api/generate", model="tiny", options={"num_ctx": asked})
        assert [wanted.num_ctx for wanted in broker.loads] == [loaded]

    on_site(scenario)


def test_a_dry_run_takes_the_options_of_a_load(on_site, broker):
    async def scenario(site):
        options = {"num_ctx": 128, "rpc_servers": "10.0.0.9:1", "num_batch": 64}
        found = (await site.post("/api/cluster/plan", model="tiny", options=options)).json()
        [wanted] = broker.planned
        assert (wanted.num_ctx, wanted.rpc_servers, wanted.num_batch) == (128, ("10.0.0.9:1",), 64)
        assert [plan["name"] for plan in found["plans"]] == ["this machine alone", "10.0.0.1:50052"]
        assert (broker.loads, found["model"]) == ([], "tiny:latest")

    on_site(scenario)


def test_a_dry_run_is_told_which_models_could_go_as_a_load_is(on_site, store, broker):
    path = store.root / "second.gguf"
    path.write_bytes(store.get("tiny").gguf_path.read_bytes() + bytes(32))
    store.create("second", Recipe(files={"second.gguf": store.blobs.add_file(path).digest}))

    async def scenario(site):
        for name in ("tiny", "second"):
            await site.post("/api/generate", model=name)
        tiny, second = broker.models
        await site.post("/api/cluster/plan", model="tiny")
        assert broker.could_go == (tiny, (second,), ())
        broker.script = None
        running = asyncio.create_task(site.post("/api/generate", model="second", prompt="Hi"))
        while not broker.submitted:
            await asyncio.sleep(0)
        await site.post("/api/cluster/plan", model="tiny")
        assert broker.could_go == (tiny, (), (second,))
        site.services.stop()
        await running

    on_site(scenario)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 400, "model is required"),
        ({"model": "nope"}, 404, "model 'nope' not found"),
        ({"model": "tiny", "options": {"rpc_servers": "box:0"}}, 400, "rpc server 'box:0'"),
    ],
)
def test_a_dry_run_of_nothing_says_what_is_wrong(on_site, body, status, error):
    async def scenario(site):
        response = await site.post("/api/cluster/plan", **body)
        assert response.status_code == status
        assert response.json()["error"].startswith(error)

    on_site(scenario)
