"""Lists, details, copies and deletions are Ollama's, field by field."""

from tests.server.conftest import SERVERS

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "quantization_level": "F16",
}


def test_tags_lists_every_model_with_its_details(on_site, store):
    async def scenario(site):
        models = (await site.http.get("/api/tags")).json()["models"]
        [tiny] = [model for model in models if model["name"] == "tiny:latest"]
        assert sorted(model["name"] for model in models) == ["tiny:latest", "tuned:latest"]
        parameter_size = tiny["details"].pop("parameter_size")
        assert parameter_size.endswith("K")
        stored = store.get("tiny")
        assert tiny.pop("modified_at").startswith(stored.modified.strftime("%Y-%m-%dT%H:%M:%S"))
        assert tiny == {
            "name": "tiny:latest",
            "model": "tiny:latest",
            "size": stored.size,
            "digest": stored.digest,
            "details": {**DETAILS, "context_length": 512, "embedding_length": 64},
            "capabilities": ["completion"],
        }

    on_site(scenario)


def test_an_empty_store_lists_nothing(on_site, store):
    async def scenario(site):
        store.delete("tiny")
        store.delete("tuned")
        assert (await site.http.get("/api/tags")).json() == {"models": []}

    on_site(scenario)


def test_ps_tells_what_is_loaded_and_until_when(on_site, store):
    async def scenario(site):
        assert (await site.http.get("/api/ps")).json() == {"models": []}
        await site.post("/api/generate", model="tuned", keep_alive=-1)
        [running] = (await site.http.get("/api/ps")).json()["models"]
        assert running.pop("expires_at") > "2300"
        running["details"].pop("parameter_size")
        assert running == {
            "name": "tuned:latest",
            "model": "tuned:latest",
            "size": 1000,
            "digest": store.get("tuned").digest,
            "details": DETAILS | {"parent_model": "tiny:latest"},
            "size_vram": 0,
            "context_length": 64,
        }

    on_site(scenario)


def test_show_tells_texts_capabilities_and_the_header(on_site, store):
    async def scenario(site):
        shown = (await site.post("/api/show", model="tuned")).json()
        info = shown["model_info"]
        assert (info["general.architecture"], info["llama.context_length"], info["tokenizer.ggml.tokens"]) == (
            "llama",
            512,
            [],
        )
        assert info["general.parameter_count"] > 0
        assert not {"general.name", "tokenizer.chat_template"} & set(info)
        assert (shown["system"], shown["capabilities"]) == ("Be brief.", ["completion"])
        assert shown["template"].startswith("{% for message in messages %}")
        assert shown["parameters"].splitlines() == [
            "num_ctx                        64",
            'rpc_servers                    "10.9.9.9:1"',
            'stop                           "END"',
            "temperature                    0.5",
        ]
        lines = shown["modelfile"].splitlines()
        assert lines[2] == "# FROM tuned:latest"
        assert f"FROM {store.get('tuned').gguf_path}" in lines
        assert {"PARAMETER num_ctx 64", "PARAMETER stop END", "SYSTEM Be brief."} <= set(lines)

    on_site(scenario)


def test_show_tells_the_tensors_and_if_verbose_the_vocabulary(on_site):
    async def scenario(site):
        verbose, shown = [(await site.post("/api/show", name="tiny", verbose=wide)).json() for wide in (True, False)]
        assert len(verbose["model_info"]["tokenizer.ggml.tokens"]) > 256
        assert verbose["tensors"] == shown["tensors"]
        assert {"name": "blk.0.attn_k.weight", "type": "F16", "shape": [64, 32]} in shown["tensors"]

    on_site(scenario)


def test_copy_gives_a_second_name(on_site, store):
    async def scenario(site):
        response = await site.post("/api/copy", source="tiny", destination="me/copy:1")
        assert (response.status_code, response.content) == (200, b"")
        assert store.get("me/copy:1").digest == store.get("tiny").digest

    on_site(scenario)


def test_delete_removes_and_unloads(on_site, broker, store):
    async def scenario(site):
        await site.post("/api/generate", model="tiny")
        response = await site.http.request("DELETE", "/api/delete", json={"name": "tiny"})
        assert (response.status_code, response.content) == (200, b"")
        assert [model.name.short for model in store.list()] == ["tuned:latest"]
        assert broker.n_unloads == 1

    on_site(scenario)


def test_missing_models_are_named(on_site):
    async def scenario(site):
        for response, error in (
            (await site.post("/api/show", model="nope"), "model 'nope' not found"),
            (await site.post("/api/copy", source="nope", destination="x"), 'model "nope" not found'),
            (await site.post("/api/create", model="x", **{"from": "nope"}), "model 'nope' not found"),
            (await site.http.request("DELETE", "/api/delete", json={"model": "nope"}), "model 'nope' not found"),
        ):
            assert (response.status_code, response.json()) == (404, {"error": error})

    on_site(scenario)


def test_a_model_whose_file_is_gone_is_an_error_of_the_server(on_site, store):
    async def scenario(site):
        store.get("tiny").gguf_path.unlink()
        response = await site.post("/api/generate", model="tiny", prompt="Hi")
        assert response.status_code == 500
        assert "is missing from" in response.json()["error"]

    on_site(scenario)


def test_what_the_system_refuses_is_said_in_a_line_with_the_path(on_site, store, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", "/models/manifests")

    monkeypatch.setattr(store, "copy", refuse)

    async def scenario(site):
        response = await site.post("/api/copy", source="tiny", destination="x")
        assert (response.status_code, response.json()) == (500, {"error": "permission denied: /models/manifests"})

    on_site(scenario)


def test_copilot_is_told_the_name_to_ask_for(on_site):
    async def scenario(site):
        for agent, base in (("GitHubCopilotChat/0.29", "tiny:latest"), ("curl/8", None)):
            response = await site.http.post("/api/show", json={"model": "tiny:latest"}, headers={"User-Agent": agent})
            assert response.json()["model_info"].get("general.basename") == base

    on_site(scenario)


def test_a_model_made_from_another_names_its_parent_in_lists_and_show(on_site):
    async def scenario(site):
        await site.post("/api/create", model="child", **{"from": "tiny"}, system="x", stream=False)
        await site.post("/api/generate", model="child")
        shown = (await site.post("/api/show", model="child")).json()
        models = (await site.http.get("/api/tags")).json()["models"] + (await site.http.get("/api/ps")).json()["models"]
        parents = [model["details"]["parent_model"] for model in models if model["name"] == "child:latest"]
        assert [shown["details"]["parent_model"], *parents] == ["tiny:latest"] * 3

    on_site(scenario)


def test_cluster_shows_the_configured_workers(on_site, broker):
    async def scenario(site):
        state = (await site.http.get("/api/cluster")).json()
        assert [(worker["address"], worker["status"]) for worker in state["workers"]] == [
            ("local", "ready"),
            ("10.0.0.1:50052", "idle"),
            ("10.0.0.2:50053", "idle"),
        ]
        await site.post("/api/generate", model="tiny")
        state = (await site.http.get("/api/cluster")).json()
        assert [(m["name"], m["stages"][0]["part"]) for m in state["models"]] == [("tiny:latest", "whole")]

    on_site(scenario, rpc_servers=SERVERS)
