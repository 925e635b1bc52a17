import hashlib
import json

import gguf
import msgspec
import pytest

from ollama_zmq.errors import ModelFileError, ModelNotFound, RequestError
from ollama_zmq.formats.manifest import ADAPTER_TYPE, MODEL_TYPE, PARAMS_TYPE, TEMPLATE_TYPE, Layer, encode_manifest
from ollama_zmq.formats.modelfile import ChatMessage
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store
from tests.models_tiny import write_all


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def upload(store, tiny_gguf):
    """Recipe files that name the tiny model, uploaded."""
    return {"tiny.gguf": store.blobs.add_file(tiny_gguf).digest}


@pytest.fixture
def other_gguf(store, tmp_path):
    """Function: upload a small GGUF with these pairs, return its digest."""

    def write(architecture="llama", **pairs):
        path = tmp_path / "other.gguf"
        writer = gguf.GGUFWriter(str(path), architecture)
        for key, value in pairs.items():
            add = writer.add_string if isinstance(value, str) else writer.add_uint16
            add(key.replace("_", "."), value)
        write_all(writer)
        return store.blobs.add_file(path).digest

    return write


def test_a_gguf_becomes_a_model(store, upload):
    statuses = []
    model = store.create("tiny", Recipe(files=upload), statuses.append)
    assert [layer.media_type for layer in model.manifest.layers] == [MODEL_TYPE]
    assert (model.config.model_format, model.config.model_family, model.config.file_type) == ("gguf", "llama", "F16")
    assert model.config.model_families == ("llama",)
    assert model.config.model_type == "167K"
    assert statuses == [
        "parsing GGUF",
        f"using existing layer {upload['tiny.gguf']}",
        f"creating new layer {model.manifest.config.digest}",
        "writing manifest",
        "success",
    ]


def test_the_files_are_byte_for_byte_ollamas(store, upload):
    model = store.create(
        "tiny", Recipe(files=upload, parameters={"temperature": 1.0, "stop": ["<|im_end|>"], "seed": 7})
    )
    raw = (store.root / "manifests/registry.ollama.ai/library/tiny/latest").read_bytes()
    assert raw.startswith(
        b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
        b'"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha256:'
    )
    assert raw.endswith(b"}]}\n")
    assert model.digest == hashlib.sha256(raw).hexdigest()
    [params] = model.manifest.of_type(PARAMS_TYPE)
    assert store.blobs.read(params.digest) == b'{"seed":7,"stop":["\\u003c|im_end|\\u003e"],"temperature":1}\n'
    config = json.loads(store.blobs.read(model.manifest.config.digest))
    assert list(config) == [
        "model_format", "model_family", "model_families", "model_type", "file_type", "architecture", "os", "rootfs",
    ]  # fmt: skip
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in model.manifest.layers]


def test_everything_in_a_recipe_is_read_back(store, upload):
    recipe = Recipe(
        files=upload,
        template="{{ .Prompt }}",
        system="Be brief.",
        license=("MIT", "Apache", "MIT"),
        parameters={"top_p": 0.5, "stop": ["a", "b"]},
        messages=(ChatMessage("user", "hi"), ChatMessage("assistant", "<ho>")),
        renderer="qwen3",
        parser="qwen3",
        requires="0.14.0",
    )
    model = store.get(store.create("tiny", recipe).name)
    assert (model.template, model.system, model.license) == ("{{ .Prompt }}", "Be brief.", ["MIT", "Apache"])
    assert model.parameters == {"top_p": 0.5, "stop": ["a", "b"]}
    assert model.messages == [ChatMessage("user", "hi"), ChatMessage("assistant", "<ho>")]
    assert (model.config.renderer, model.config.parser, model.config.requires) == ("qwen3", "qwen3", "0.14.0")


def test_a_model_from_a_model_keeps_what_is_not_mentioned(store, upload):
    base = Recipe(files=upload, template="T", system="S", parameters={"seed": 1, "top_k": 2}, parser="p")
    store.create("base", base)
    model = store.create("derived", Recipe(from_="base", system="S2", parameters={"seed": 3}))
    assert (model.template, model.system, model.parameters) == ("T", "S2", {"seed": 3, "top_k": 2})
    assert model.config.parser == "p"
    assert model.gguf_digest == upload["tiny.gguf"]
    assert len(model.manifest.of_type(TEMPLATE_TYPE)) == 1


def test_the_same_recipe_is_the_same_model(store, upload):
    recipe = Recipe(files=upload, system="S", parameters={"seed": 1})
    n_blobs = len(list(store.blobs.folder.iterdir()))
    first = store.create("a", recipe)
    assert store.create("b", recipe).digest == first.digest
    assert len(list(store.blobs.folder.iterdir())) == n_blobs + 3


def test_what_cannot_be_used_is_refused_and_not_ignored(store, upload, other_gguf):
    projector = {"mmproj.gguf": other_gguf("clip", general_type="mmproj")}
    adapter = {"lora.gguf": other_gguf(general_type="adapter")}
    assert "mmproj.gguf is a projector: pictures are not supported" in refusal(store, Recipe(files=upload | projector))
    for kind in (projector, {"mmproj.gguf": other_gguf(general_type="mmproj")}):
        assert "mmproj.gguf is a projector: pictures are not supported" in refusal(store, Recipe(files=kind))
    assert "lora.gguf is an adapter and no model: adapters are not" in refusal(store, Recipe(files=adapter))
    assert "adapters are not supported yet" in refusal(store, Recipe(files=upload, adapters=adapter))


def test_no_adapter_is_inherited(store, upload):
    model = store.create("base", Recipe(files=upload))
    layers = (*model.manifest.layers, Layer(ADAPTER_TYPE, upload["tiny.gguf"], 1))
    path = store.root / "manifests" / model.name.path
    path.write_bytes(encode_manifest(msgspec.structs.replace(model.manifest, layers=layers)))
    with pytest.raises(RequestError, match="model 'base:latest' has an adapter: adapters are not supported yet"):
        store.create("derived", Recipe(from_="base"))


def test_a_model_from_a_model_names_it(store, upload):
    assert store.create("base", Recipe(files=upload, system="S")).parent_model == ""
    store.create("me/derived:v2", Recipe(from_="base", system="S2"))
    assert store.get("me/derived:v2").parent_model == "base:latest"
    assert store.create("third", Recipe(from_="me/derived:v2")).parent_model == "me/derived:v2"


def test_the_path_of_a_blob_is_no_parent(store, upload):
    model = store.create("base", Recipe(files=upload))
    path = store.root / "manifests" / model.name.path
    (layer,) = model.manifest.layers
    layers = (msgspec.structs.replace(layer, from_="/r/.ollama/blobs/sha256-00"),)
    path.write_bytes(encode_manifest(msgspec.structs.replace(model.manifest, layers=layers)))
    assert store.get("base").parent_model == ""


def test_a_check_sees_the_file_and_the_template_before_anything_is_written(store, upload):
    seen = []

    def check(file, template):
        seen.append((file.architecture, template))
        raise ModelFileError(f"{file.path}: no")

    before = set(store.blobs.folder.iterdir())
    recipe = Recipe(files=upload, template="T", system="S", parameters={"seed": 1})
    with pytest.raises(RequestError, match=r"^tiny\.gguf: no$"):
        store.create("new", recipe, check=check)
    assert (seen, store.list(), set(store.blobs.folder.iterdir())) == ([("llama", "T")], [], before)


@pytest.mark.parametrize("parameters", [{"seed": "seven"}, {"stop": [1]}, {"temperature": "hot"}])
def test_a_parameter_of_the_wrong_type_is_refused(store, upload, parameters):
    assert next(iter(parameters)) in refusal(store, Recipe(files=upload, parameters=parameters))


def test_half_a_surrogate_pair_is_stored_as_a_replacement(store, upload):
    recipe = Recipe(
        files=upload,
        system="a\ud83d",
        template="{{ .Prompt }}\ud83d",
        license=("\udf89",),
        messages=(ChatMessage("user", "\ud83c\udf89\ud83d"),),
        parameters={"stop": ["\udf89"]},
    )
    model = store.create("tiny", recipe)
    assert (model.system, model.template, model.license) == ("a\ufffd", "{{ .Prompt }}\ufffd", ["\ufffd"])
    assert model.messages == [ChatMessage("user", "\U0001f389\ufffd")]
    assert model.parameters == {"stop": ["\ufffd"]}


def refusal(store, recipe, error=RequestError):
    with pytest.raises(error) as caught:
        store.create("new", recipe)
    assert store.list() == []
    return str(caught.value)


def test_a_recipe_of_nothing_is_refused(store):
    assert refusal(store, Recipe(system="S")) == "neither 'from' or 'files' was specified"


def test_an_absent_base_is_named(store):
    assert refusal(store, Recipe(from_="absent"), ModelNotFound) == "model 'absent' not found"


def test_files_that_are_no_model_are_named(store, upload, other_gguf, tiny_gguf):
    zeros = "sha256:" + "0" * 64
    assert refusal(store, Recipe(files={"/etc/passwd": zeros})) == "file path must be relative: /etc/passwd"
    assert refusal(store, Recipe(files={"../x": zeros})) == "file path must be relative: ../x"
    assert refusal(store, Recipe(files={"x.gguf": "sha256:0"})) == "invalid digest format"
    assert refusal(store, Recipe(files={"x.gguf": zeros})) == f"blob {zeros} of x.gguf is not here: upload it first"
    text = store.blobs.add([b"hello"]).digest
    assert refusal(store, Recipe(files={"x.bin": text})) == "supplied file was not in GGUF format: x.bin"
    half = store.blobs.add([tiny_gguf.read_bytes()[:200_000]]).digest
    assert refusal(store, Recipe(files={"x.gguf": half})).startswith("x.gguf: truncated: ")
    for n in (2, 3):
        part = other_gguf(split_count=n)
        assert f"x.gguf: one of {n} parts of a model: give all of them" in refusal(
            store, Recipe(files={"x.gguf": part})
        )
    both = {**upload, "other.gguf": other_gguf()}
    assert refusal(store, Recipe(files=both)) == "several models at once: tiny.gguf, other.gguf"


def test_so_many_names_for_one_file_are_refused_before_any_is_opened(store, upload):
    (digest,) = upload.values()
    with pytest.raises(RequestError, match="1025 files for one model, at most 1024"):
        store.create("many", Recipe(files={f"{number}.gguf": digest for number in range(1025)}))


def test_a_check_sees_the_template_of_the_base_where_the_recipe_has_none(store, upload):
    store.create("base", Recipe(files=upload, template="{{ .Prompt }}"))
    seen = []
    store.create("new", Recipe(from_="base", system="Hi"), check=lambda _file, template: seen.append(template))
    assert seen == ["{{ .Prompt }}"]
