"""Blobs are uploaded and verified; models are made from them and from each other, told step by step."""

import hashlib
import json

import pytest

from ollama_zmq.store.names import parse_name


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_blob_is_stored_once_and_found_again(on_site, store):
    content = bytes(range(256)) * 10_000
    digest = digest_of(content)

    async def scenario(site):
        assert (await site.http.head(f"/api/blobs/{digest}")).status_code == 404
        assert (await site.http.post(f"/api/blobs/{digest}", content=content)).status_code == 201
        assert (await site.http.post(f"/api/blobs/{digest}", content=content)).status_code == 200
        assert (await site.http.head(f"/api/blobs/{digest}")).status_code == 200
        assert store.blobs.read(digest) == content

    on_site(scenario)


def test_a_blob_with_another_digest_is_not_kept(on_site, store):
    digest = digest_of(b"expected")
    before = sorted(store.blobs.folder.iterdir())

    async def scenario(site):
        response = await site.http.post(f"/api/blobs/{digest}", content=b"something else")
        error = f'digest mismatch, expected "{digest}", got "{digest_of(b"something else")}"'
        assert (response.status_code, response.json()) == (400, {"error": error})
        assert sorted(store.blobs.folder.iterdir()) == before

    on_site(scenario)


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:1", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_refused(on_site, digest):
    async def scenario(site):
        assert (await site.http.head(f"/api/blobs/{digest}")).status_code == 400
        response = await site.http.post(f"/api/blobs/{digest}", content=b"x")
        assert (response.status_code, response.json()) == (400, {"error": "invalid digest format"})

    on_site(scenario)


def test_a_model_made_from_another_keeps_and_replaces_parts(on_site, store):
    async def scenario(site):
        body = {"from": "tuned", "system": "Rhyme.", "parameters": {"temperature": 0, "stop": "STOP"}}
        body |= {"template": "{{ .Prompt }}", "license": "MIT", "messages": [{"role": "user", "content": "Hi"}]}
        response = await site.post("/api/create", model="poet", **body)
        statuses = [json.loads(line)["status"] for line in response.text.splitlines()]
        assert statuses[-2:] == ["writing manifest", "success"]
        assert statuses[0].startswith("creating new layer sha256:")
        poet = store.get("poet")
        assert (poet.system, poet.template, poet.license) == ("Rhyme.", "{{ .Prompt }}", ["MIT"])
        assert poet.parameters == {"num_ctx": 64, "temperature": 0, "stop": ["STOP"], "rpc_servers": "10.9.9.9:1"}
        assert [(message.role, message.content) for message in poet.messages] == [("user", "Hi")]

    on_site(scenario)


def test_a_model_made_from_an_uploaded_file_answers(on_site, store):
    content = store.get("tiny").gguf_path.read_bytes()

    async def scenario(site):
        await site.http.post(f"/api/blobs/{digest_of(content)}", content=content)
        response = await site.post("/api/create", model="mine", files={"m.gguf": digest_of(content)}, stream=False)
        assert (response.status_code, response.json()) == (200, {"status": "success"})
        assert len(await site.lines("/api/generate", model="mine", prompt="Hi")) == 3

    on_site(scenario)


@pytest.mark.parametrize(
    ("status", "error", "body"),
    [
        (400, "neither 'from' or 'files' was specified", {"model": "m"}),
        (400, "invalid model name", {"from": "tiny"}),
        (404, "model 'nope' not found", {"model": "m", "from": "nope"}),
        (400, "file path must be relative", {"model": "m", "files": {"/etc/passwd": digest_of(b"")}}),
        (400, "unknown parameter 'wings'", {"model": "m", "from": "tiny", "parameters": {"wings": 2}}),
        (
            400,
            'option "top_k" must be of type integer',
            {"model": "m", "from": "tiny", "parameters": {"top_k": "many"}},
        ),
        (400, "invalid model name", {"model": "a//b", "from": "tiny"}),
        (400, "adapters: not supported yet", {"model": "m", "from": "tiny", "adapters": {"a.gguf": digest_of(b"")}}),
        (400, "draft_files: draft models", {"model": "m", "from": "tiny", "draft_files": {"d.gguf": digest_of(b"")}}),
        (400, "draft_quantize='q8_0': draft models", {"model": "m", "from": "tiny", "draft_quantize": "q8_0"}),
        (400, "remote_host='x'", {"model": "m", "from": "tiny", "remote_host": "x"}),
        (400, "quantize='q4_K_M': not supported yet", {"model": "m", "from": "tiny", "quantize": "q4_K_M"}),
        (
            400,
            "message role 'tool': must be one of",
            {"model": "m", "from": "tiny", "messages": [{"role": "tool", "content": ""}]},
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_made(on_site, store, status, error, body):
    async def scenario(site):
        response = await site.post("/api/create", **body)
        assert (response.status_code, response.json()["error"][: len(error)]) == (status, error)
        assert parse_name("m") not in [model.name for model in store.list()]

    on_site(scenario)


def test_a_blob_that_is_no_gguf_is_named(on_site):
    async def scenario(site):
        await site.http.post(f"/api/blobs/{digest_of(b'hello')}", content=b"hello")
        response = await site.post("/api/create", model="m", files={"m.gguf": digest_of(b"hello")}, stream=False)
        assert response.json() == {"error": "supplied file was not in GGUF format: m.gguf"}

    on_site(scenario)
