"""What cannot run is refused when it is made, with status 400 and words, and no model is left."""

import struct

import gguf
import pytest

from tests.models_tiny import write_all, write_tiny_llama


def other(path, architecture="llama", **pairs):
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in pairs.items():
        writer.add_string(key.replace("_", "."), value)
    write_all(writer)
    return path


def with_key(path, key, changed):
    """The tiny model with *key* renamed to *changed*, which has as many letters."""
    raw = write_tiny_llama(path, n_layers=1).read_bytes()
    assert raw.count(key) >= 1
    path.write_bytes(raw.replace(key, changed))
    return path


FILES = {
    "architecture": (
        lambda path: other(path, "bert"),
        "architecture 'bert' is not supported; this version runs",
    ),
    "adapter": (lambda path: other(path, general_type="adapter"), "adapters are not supported yet"),
    "projector": (lambda path: other(path, "clip"), "pictures are not supported yet"),
    "no tensors": (other, "x.gguf: metadata key llama.embedding_length is missing"),
    "no magic": (lambda path: path.write_bytes(b"GGML") and path, "supplied file was not in GGUF format: x.gguf"),
    "cut": (lambda path: path.write_bytes(b"GGUF" + struct.pack("<I", 3)) and path, "x.gguf: truncated header"),
    "vocabulary": (lambda path: with_key(path, b"gpt2", b"gpt9"), "x.gguf: tokenizer.ggml.model='gpt9'"),
    "tensor": (lambda path: with_key(path, b"blk.0.ffn_up.w", b"blk.0.ffn_uq.w"), "'blk.0.ffn_up.weight' is missing"),
    "its template": (
        lambda path: write_tiny_llama(path, n_layers=1, chat_template="{% if %}"),
        "x.gguf: the chat template does not parse: tokenizer.chat_template: line 1: ",
    ),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("make", "words"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_run_is_refused_and_leaves_no_model(on_site, store, tmp_path, make, words, stream):
    digest = store.blobs.add_file(make(tmp_path / "x.gguf")).digest

    async def scenario(site):
        body = {"model": "new", "files": {"x.gguf": digest}, "stream": stream, "system": "S"}
        response = await site.post("/api/create", **body)
        assert stream or response.status_code == 400
        assert words in response.text.splitlines()[-1]
        assert str(store.root) not in response.text
        assert (await site.post("/api/show", model="new")).status_code == 404

    on_site(scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"template": "{{ if }}"}, "TEMPLATE does not parse: template error: "),
        ({"template": "{{ nofunction }}"}, "TEMPLATE does not parse: "),
        ({"template": "{{ .Prompt }}" * 5000}, "5000 actions, more than 4096"),
        ({"parameters": {"seed": "seven"}}, 'option \\"seed\\" must be of type integer'),
        ({"parameters": {"sede": 7}}, "unknown parameter 'sede'"),
        ({"adapters": {"lora.gguf": "sha256:" + "0" * 64}}, "adapters: not supported yet"),
        ({"quantize": "Q4_K_M"}, "quantize='Q4_K_M': not supported yet"),
        ({"quantization": "Q4_K_M"}, "quantization='Q4_K_M': not supported yet"),
        ({"draft_files": {"d.gguf": "sha256:" + "0" * 64}}, "draft_files: draft models are not supported"),
        ({"draft_quantize": "Q4_K_M"}, "draft_quantize='Q4_K_M': draft models are not supported"),
        ({"remote_host": "http://other"}, "remote_host='http://other': models of another host"),
        ({"renderer": "qwen3"}, "renderer='qwen3': built-in renderers are not supported yet; leave it out"),
        ({"parser": "nonsense"}, "parser='nonsense': built-in parsers are not supported yet; leave it out"),
        ({"capabilities": ["vision"]}, "capabilities: they are read from the model's file"),
        ({"info": {"model_family": "bert"}}, "info: it is read from the model's file"),
        (
            {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]},
            "messages: a model's examples are texts",
        ),
        ({"messages": [{"role": "assistant", "thinking": "h"}]}, "messages: a model's examples are texts"),
        ({"requires": "banana"}, "requires must be a valid semver (e.g. 0.14.0)"),
        ({"from": "a//b::c"}, "invalid model name"),
    ],
)
def test_a_modelfile_that_cannot_work_is_refused_before_the_answer_begins(on_site, store, body, words):
    before = sorted(store.blobs.folder.iterdir())

    async def scenario(site):
        response = await site.post("/api/create", **{"model": "new", "from": "tiny"} | body)
        assert response.status_code == 400
        assert words in response.text
        assert (await site.post("/api/show", model="new")).status_code == 404
        assert sorted(store.blobs.folder.iterdir()) == before

    on_site(scenario)


def test_a_modelfile_mends_a_file_whose_own_template_is_broken(on_site, store, tmp_path):
    path = write_tiny_llama(tmp_path / "x.gguf", n_layers=1, chat_template="{% if %}")
    files = {"x.gguf": store.blobs.add_file(path).digest}

    async def scenario(site):
        response = await site.post("/api/create", model="new", files=files, template="{{ .Prompt }}", stream=False)
        assert (response.status_code, response.json()) == (200, {"status": "success"})

    on_site(scenario)
