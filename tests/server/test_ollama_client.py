"""The Python client that Ollama publishes works against us without knowing the difference."""

import pytest

from tests.server.live import live_server

ollama = pytest.importorskip("ollama", reason="the PyPI package ollama is a test extra")


@pytest.fixture
def client(broker, store):
    with live_server(broker, store) as url, ollama.Client(url) as client:
        yield client


def test_generate_streams_and_answers_whole(client):
    answer = client.generate("tiny", "Hi", options={"temperature": 0})
    assert (answer.response, answer.done, answer.done_reason, answer.eval_count) == ("Hello there!", True, "stop", 2)
    assert [chunk.response for chunk in client.generate("tiny", "Hi", stream=True)] == ["Hello", " there!", ""]


def test_chat_streams_and_answers_whole(client):
    messages = [{"role": "user", "content": "Hi"}]
    answer = client.chat("tiny", messages, keep_alive="10m")
    assert (answer.message.role, answer.message.content) == ("assistant", "Hello there!")
    assert "".join(chunk.message.content for chunk in client.chat("tiny", messages, stream=True)) == "Hello there!"


def test_list_show_and_ps_are_understood(client):
    assert sorted(model.model for model in client.list().models) == ["tiny:latest", "tuned:latest"]
    shown = client.show("tuned")
    assert (shown.details.family, shown.capabilities) == ("llama", ["completion"])
    assert shown.modelinfo["general.architecture"] == "llama"
    assert client.ps().models == []
    client.generate("tiny", "")
    [running] = client.ps().models
    assert (running.name, running.context_length, running.size_vram) == ("tiny:latest", 512, 0)


def test_create_copy_and_delete_change_the_store(client, store, tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(store.get("tiny").gguf_path.read_bytes())
    digest = client.create_blob(path)
    assert client.create("mine", files={"other.gguf": digest}, parameters={"seed": 3}).status == "success"
    statuses = [chunk.status for chunk in client.create("poet", from_="mine", system="Rhyme.", stream=True)]
    assert statuses[-1] == "success"
    assert client.copy("poet", "bard").status == "success"
    assert client.delete("poet").status == "success"
    assert sorted(model.name.short for model in store.list()) == [
        "bard:latest",
        "mine:latest",
        "tiny:latest",
        "tuned:latest",
    ]


def test_errors_have_their_status_and_text(client):
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        client.generate("nope", "Hi")
    assert caught.value.status_code == 404
