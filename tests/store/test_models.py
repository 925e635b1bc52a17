import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from ollama_zmq.errors import CapacityError, ModelFileError, ModelNotFound, RequestError
from ollama_zmq.formats.manifest import ADAPTER_TYPE
from ollama_zmq.formats.modelfile import ChatMessage
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.manifests import Manifests
from ollama_zmq.store.models import Store
from ollama_zmq.store.names import parse_name

EVIL_NAMES = ["../../etc/passwd", "..", "a/../../b", "/etc/passwd", "a\0b", "", "x/y/z/../../../../w"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def weights(store, tiny_gguf):
    """Digest of the tiny model, uploaded."""
    return store.blobs.add_file(tiny_gguf).digest


@pytest.fixture
def tiny(store, weights):
    return store.create("tiny", Recipe(files={"tiny.gguf": weights}, system="Be brief.", license=["MIT"]))


def blob_names(store):
    return sorted(os.listdir(store.blobs.folder))


def names(store):
    return [model.name.short for model in store.list()]


def put_blob(root, content):
    digest = hashlib.sha256(content).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


@pytest.fixture
def ollamas_store(tmp_path):
    """A store as Ollama left it: more fields than we know, an old params layer, two licenses, a stray file."""
    root = tmp_path / "ollama"
    image = "application/vnd.ollama.image"
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": None,
        "model_type": "8.0B",
        "file_type": "Q4_0",
        "capabilities": ["tools"],
        "draft": {"x": 1},
        "rootfs": {"type": "layers", "diff_ids": None},
    }
    layers = [
        {"mediaType": f"{image}.model", **put_blob(root, b"GGUF..."), "from": "/root/model.gguf"},
        {"mediaType": f"{image}.template", **put_blob(root, b"{{ .Prompt }}")},
        {"mediaType": f"{image}.system", **put_blob(root, b"You are a llama.")},
        {"mediaType": f"{image}.params", **put_blob(root, b'{"stop":["\\u003c|eot|\\u003e"],"mirostat":1}\n')},
        {"mediaType": f"{image}.messages", **put_blob(root, b'[{"role":"user","content":"hi"}]\n')},
        {"mediaType": f"{image}.license", **put_blob(root, b"A")},
        {"mediaType": f"{image}.license", **put_blob(root, b"B")},
        {"mediaType": f"{image}.embed", **put_blob(root, b"?"), "unknown": 1},
    ]
    config_layer = {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        **put_blob(root, json.dumps(config).encode()),
    }
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": config_layer, "layers": layers, "runner": "ollama"}  # fmt: skip
    folder = root / "manifests/registry.ollama.ai/library/llama3"
    folder.mkdir(parents=True)
    (folder / "8b").write_text(json.dumps(manifest))
    (folder / ".DS_Store").write_text("junk")
    return Store(root)


def test_a_store_that_ollama_wrote_opens(ollamas_store):
    [model] = ollamas_store.list()
    raw = (ollamas_store.root / "manifests/registry.ollama.ai/library/llama3/8b").read_bytes()
    assert model.name.short == "llama3:8b"
    assert model.digest == hashlib.sha256(raw).hexdigest()
    assert model.size == sum(path.stat().st_size for path in ollamas_store.blobs.folder.iterdir())
    assert (model.config.model_family, model.config.model_type, model.config.file_type) == ("llama", "8.0B", "Q4_0")
    assert model.gguf_path.read_bytes() == b"GGUF..."
    assert model.gguf_digest == f"sha256:{hashlib.sha256(b'GGUF...').hexdigest()}"
    assert model.template == "{{ .Prompt }}"
    assert model.system == "You are a llama."
    assert model.parameters == {"stop": ["<|eot|>"], "mirostat": 1}
    assert model.messages == [ChatMessage("user", "hi")]
    assert model.license == ["A", "B"]
    assert model.paths(ADAPTER_TYPE) == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb"a\ud83d", "a\ufffd"),
        (rb"\ude00b", "\ufffdb"),
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\\ud83d", r"\ud83d"),
        (b"caf\xe9\xe8", "caf\ufffd\ufffd"),
    ],
)
def test_json_of_other_programs_is_read_as_bodies_of_requests_are(ollamas_store, written, read):
    path = ollamas_store.root / "manifests/registry.ollama.ai/library/llama3/8b"
    manifest = json.loads(path.read_bytes())
    blobs = {
        "params": b'\xef\xbb\xbf{"stop":["%b"]}\n}' % written,
        "messages": b'[{"role":"user","content":"%b"}]' % written,
    }
    for layer in manifest["layers"]:
        if (kind := layer["mediaType"].rpartition(".")[2]) in blobs:
            layer |= put_blob(ollamas_store.root, blobs[kind])
    path.write_text(json.dumps(manifest))
    model = ollamas_store.get("llama3:8b")
    assert model.parameters == {"stop": [read]}
    assert model.messages == [ChatMessage("user", read)]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"stop":NaN}', b"[" * 100_000])
def test_what_is_no_json_is_damaged_and_names_its_blob(ollamas_store, raw):
    path = ollamas_store.root / "manifests/registry.ollama.ai/library/llama3/8b"
    manifest = json.loads(path.read_bytes())
    for layer in manifest["layers"]:
        if layer["mediaType"].endswith(".params"):
            layer |= put_blob(ollamas_store.root, raw)
            digest = layer["digest"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match=f"blob {digest}: damaged: "):
        _ = ollamas_store.get("llama3:8b").parameters


def test_an_empty_store_lists_nothing(store):
    assert store.list() == []
    assert store.prune(now=0) == ()
    assert not store.root.exists()


def test_the_last_modified_is_listed_first(store, tiny):
    store.copy("tiny", "old")
    os.utime(store.root / "manifests/registry.ollama.ai/library/old/latest", (1000, 1000))
    assert names(store) == ["tiny:latest", "old:latest"]
    assert store.get("old").modified == datetime.fromtimestamp(1000, UTC)


def test_a_damaged_manifest_is_named_and_does_not_hide_the_others(store, tiny):
    store.copy("tiny", "broken")
    path = store.root / "manifests/registry.ollama.ai/library/broken/latest"
    path.write_text("{not json")
    with structlog.testing.capture_logs() as logs:
        assert names(store) == ["tiny:latest"]
    assert [(entry["event"], entry["model"]) for entry in logs] == [("manifest.rejected", "broken:latest")]
    with pytest.raises(ModelFileError, match=r"manifest of model 'broken:latest': damaged"):
        store.get("broken")
    store.delete("broken")


def test_a_list_of_manifests_is_refused_by_name(store, tiny):
    path = store.root / "manifests/registry.ollama.ai/library/many/latest"
    path.parent.mkdir()
    path.write_text('{"schemaVersion":2,"mediaType":"application/vnd.ollama.manifest.list.v2+json","manifests":[]}')
    with pytest.raises(ModelFileError, match="lists of manifests are not supported"):
        store.get("many")


def test_a_missing_file_of_weights_is_named(store, tiny, weights):
    store.blobs.remove(weights)
    with pytest.raises(ModelFileError, match=f"blob {weights} is missing"):
        assert store.get("tiny").gguf_path


def test_case_does_not_matter(store, tiny):
    assert store.get("TINY:Latest").name == tiny.name
    store.copy("TINY", "Tiny:V2")
    assert names(store) == ["Tiny:V2", "tiny:latest"] or names(store) == ["tiny:latest", "Tiny:V2"]
    store.create("TINY", Recipe(from_="tiny"))
    assert len(store.list()) == 2
    store.delete("tInY:v2")
    assert names(store) == ["tiny:latest"]


@pytest.mark.parametrize("name", ["absent", "absent:7b", *EVIL_NAMES])
def test_a_model_that_is_not_here_is_named_as_asked(store, tiny, name):
    for action in (store.get, store.delete):
        with pytest.raises(ModelNotFound) as caught:
            action(name)
        assert str(caught.value) == f"model '{name}' not found"
    with pytest.raises(ModelNotFound) as caught:
        store.copy(name, "other")
    assert str(caught.value) == f'model "{name}" not found'


def test_a_model_that_is_deleted_while_it_is_read_is_not_found(store, tiny):
    def view(model):
        store.delete("tiny")
        return model.gguf_path

    with pytest.raises(ModelNotFound, match="model 'TINY' not found"):
        store.read("TINY", view)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(store, tiny):
    seen = []

    def view(model):
        seen.append(model.digest)
        if len(seen) < 3:
            store.create("tiny", Recipe(from_="tiny", system=f"Be long {len(seen)}."))
        return model.system

    assert store.read("tiny", view) == "Be long 2."
    assert len(set(seen)) == 3


def test_a_model_that_is_replaced_for_ever_is_not_read_for_ever(store, tiny):
    def view(model):
        store.create("tiny", Recipe(from_="tiny", system=model.digest))
        return model.system

    with pytest.raises(CapacityError, match=r"model 'tiny' was replaced \d+ times while it was read: try again"):
        store.read("tiny", view)


def test_a_model_that_is_deleted_between_its_manifest_and_its_config_is_not_found(store, tiny, monkeypatch):
    read = store.blobs.read

    def late(digest):
        store.delete("tiny")
        return read(digest)

    monkeypatch.setattr(store.blobs, "read", late)
    with structlog.testing.capture_logs() as logs:
        assert names(store) == []
    assert logs == []  # it was no damaged one
    monkeypatch.undo()
    with pytest.raises(ModelNotFound, match="model 'tiny' not found"):
        store.get("tiny")


def test_a_model_that_another_process_has_just_deleted_is_not_found(store, tiny, monkeypatch):
    monkeypatch.setattr(Manifests, "has", lambda self, name: True)
    for action in (store.get, store.delete, lambda name: store.create("new", Recipe(from_=name))):
        with pytest.raises(ModelNotFound, match=r"^model 'gone' not found$"):
            action("gone")
    with pytest.raises(ModelNotFound, match=r'^model "gone" not found$'):
        store.copy("gone", "other")


def test_pruning_is_not_ended_by_a_model_that_another_process_deletes(store, tiny, monkeypatch):
    names_ = list(store._manifests.names())
    monkeypatch.setattr(Manifests, "names", lambda self: [*names_, parse_name("gone")])
    monkeypatch.setattr(Manifests, "has", lambda self, name: True)
    kept = blob_names(store)
    store.blobs.add([b"upload whose model was never made"])
    store.prune(now=1e12)
    assert blob_names(store) == kept


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_nothing_is_written_outside_the_store(store, tiny, name, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError, match="invalid model name"):
        store.copy("tiny", name)
    with pytest.raises(RequestError, match="invalid model name"):
        store.create(name, Recipe(from_="tiny"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_copy_is_the_same_model(store, tiny):
    store.copy("tiny", "me/other:x")
    copied = store.get("me/other:x")
    assert (copied.digest, copied.system, copied.gguf_path) == (tiny.digest, "Be brief.", tiny.gguf_path)


def test_deleting_keeps_what_others_name(store, tiny, weights):
    store.create("talkative", Recipe(from_="tiny", system="Talk a lot."))
    store.delete("talkative")
    assert store.get("tiny").system == "Be brief."
    assert store.get("tiny").gguf_path.exists()
    store.delete("tiny")
    assert blob_names(store) == []
    assert list((store.root / "manifests").iterdir()) == []


def test_deleting_spares_the_blobs_of_a_damaged_manifest(store, tiny, weights):
    store.copy("tiny", "damaged")
    path = store.root / "manifests/registry.ollama.ai/library/damaged/latest"
    path.write_bytes(path.read_bytes()[:-20])
    store.delete("tiny")
    assert store.blobs.has(weights)


def test_replacing_a_model_lets_go_of_its_old_layers(store, tiny):
    before = set(blob_names(store))
    store.create("tiny", Recipe(from_="tiny", system="Be long."))
    gone = before - set(blob_names(store))
    assert len(gone) == 2  # the old system prompt and the old config
    assert store.get("tiny").license == ["MIT"]


def test_pruning_removes_what_nobody_names_after_an_hour(store, tiny):
    kept = blob_names(store)
    orphan = store.blobs.add([b"upload whose model was never made"]).digest
    (store.blobs.folder / "sha256-partial-0").write_bytes(b"half")
    (store.blobs.folder / "folder").mkdir()
    now = max(path.stat().st_mtime for path in store.blobs.folder.iterdir())
    assert store.prune(now + 3599) == ()
    assert set(store.prune(now + 3601)) == {orphan.replace(":", "-"), "sha256-partial-0"}
    assert blob_names(store) == sorted([*kept, "folder"])


def test_pruning_can_be_turned_off(tiny_gguf, tmp_path):
    store = Store(tmp_path / "models", keeps_blobs=True)
    store.create("tiny", Recipe(files={"tiny.gguf": store.blobs.add_file(tiny_gguf).digest}))
    n_blobs = len(blob_names(store))
    store.delete("tiny")
    assert store.prune(now=1e12) == ()
    assert len(blob_names(store)) == n_blobs


def test_pruning_spares_the_manifests_that_a_list_names(store):
    child = store.blobs.add([json.dumps({"layers": [{"digest": store.blobs.add([b"layer"]).digest}]}).encode()])
    path = Path(store.root / "manifests/registry.ollama.ai/library/many/latest")
    path.parent.mkdir(parents=True)
    listed = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [{"digest": child.digest}]}
    path.write_text(json.dumps(listed))
    assert store.prune(now=1e12) == ()
