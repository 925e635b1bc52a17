"""A stored model whose template does not parse is shown, and answers raw prompts; only what renders it fails."""

import pytest

from ollama_zmq.store.create import Recipe
from tests.models_tiny import write_tiny_llama


@pytest.fixture(params=["own", "Modelfile"])
def broken(request, store, tmp_path):
    """The name of such a model."""
    if request.param == "Modelfile":
        store.create("broken", Recipe(from_="tiny", template="{{ if }}"))
    else:
        path = write_tiny_llama(tmp_path / "x.gguf", n_layers=1, chat_template="{% if %}")
        store.create("broken", Recipe(files={"x.gguf": store.blobs.add_file(path).digest}))
    return "broken"


def test_it_is_shown_with_its_text(on_site, broken):
    async def scenario(site):
        response = await site.post("/api/show", model=broken)
        assert response.status_code == 200
        assert response.json()["template"] in ("{% if %}", "{{ if }}")
        assert response.json()["capabilities"] == ["completion"]

    on_site(scenario)


def test_raw_prompts_are_answered_and_others_refused(on_site, broken):
    async def scenario(site):
        raw = await site.post("/api/generate", model=broken, prompt="hi", raw=True, stream=False)
        assert raw.status_code == 200
        for path, body in (
            ("/api/generate", {"prompt": "hi"}),
            ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}),
        ):
            response = await site.post(path, model=broken, stream=False, **body)
            assert response.status_code == 400
            assert "the model's chat template does not parse: " in response.json()["error"]

    on_site(scenario)
