"""A model that is deleted or replaced while a request is on its way is not found, and never half there."""

import pytest

from ollama_zmq.errors import ModelFileError
from ollama_zmq.server import inference
from ollama_zmq.server.endpoints import cluster, models
from ollama_zmq.store.create import Recipe

GENERATE = ("/api/generate", {"prompt": "Hi"}, inference)
CHAT = ("/api/chat", {"messages": [{"role": "user", "content": "Hi"}]}, inference)
SHOW = ("/api/show", {}, models)
PLAN = ("/api/cluster/plan", {}, cluster)
NOT_FOUND = (404, {"error": "model 'tiny' not found"})


def answer(response):
    return response.status_code, response.json()


@pytest.mark.parametrize(("path", "fields", "module"), [GENERATE, CHAT, SHOW, PLAN])
def test_a_model_that_is_deleted_while_it_is_looked_at_is_not_found(on_site, monkeypatch, path, fields, module):
    async def scenario(site):
        def late(model, *others):
            site.store.delete("tiny")
            raise ModelFileError(f"blob of {model.name.short} is missing")

        monkeypatch.setattr(module, "facts_of", late)
        assert answer(await site.post(path, model="tiny", **fields)) == NOT_FOUND

    on_site(scenario, rpc_servers="10.0.0.1:1")


def before_loads(broker, act):
    """Let *act* happen between the look at a model and its load."""
    load = broker.load

    def late(wanted, **others):
        act()
        return load(wanted, **others)

    broker.load = late


@pytest.mark.parametrize(("path", "fields", "module"), [GENERATE, CHAT])
def test_a_model_that_is_deleted_before_its_file_is_opened_is_not_found(on_site, broker, path, fields, module):
    async def scenario(site):
        before_loads(broker, lambda: site.store.delete("tiny"))
        broker.load_error = ModelFileError("sha256-0: cannot be read: No such file or directory")
        assert answer(await site.post(path, model="tiny", **fields)) == NOT_FOUND

    on_site(scenario)


def test_a_model_that_is_replaced_before_its_file_is_opened_may_be_asked_for_again(on_site, broker):
    async def scenario(site):
        before_loads(broker, lambda: site.store.create("tiny", Recipe(from_="tuned")))
        broker.load_error = ModelFileError("sha256-0: cannot be read: No such file or directory")
        status, said = answer(await site.post("/api/generate", model="tiny", prompt="Hi"))
        assert (status, said) == (503, {"error": "model 'tiny' was replaced while it was loaded: try again"})

    on_site(scenario)


def test_a_file_that_cannot_be_read_is_said_to_be_so(on_site, broker):
    async def scenario(site):
        broker.load_error = ModelFileError("sha256-0: cannot be read: Permission denied")
        status, said = answer(await site.post("/api/generate", model="tiny", prompt="Hi"))
        assert (status, said) == (500, {"error": "sha256-0: cannot be read: Permission denied"})

    on_site(scenario)


@pytest.mark.parametrize(("path", "fields", "module"), [GENERATE, CHAT])
def test_a_model_that_is_deleted_after_its_load_still_answers_with_its_texts(on_site, broker, path, fields, module):
    async def scenario(site):
        before_loads(broker, lambda: site.store.delete("tuned"))
        response = await site.post(path, model="tuned", _debug_render_only=True, **fields)
        assert "Be brief." in response.json()["_debug_info"]["rendered_template"]

    on_site(scenario)


def test_a_model_whose_manifest_is_damaged_can_be_deleted(on_site, store):
    async def scenario(site):
        (path,) = store.root.glob("manifests/*/*/tiny/latest")
        path.write_text("{not json")
        assert (await site.http.request("DELETE", "/api/delete", json={"model": "tiny"})).status_code == 200
        assert not path.exists()

    on_site(scenario)
