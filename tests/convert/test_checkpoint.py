"""A folder of safetensors: what it may hold, and what is refused with the name of the file, tensor or key."""

import json

import numpy as np
import pytest

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.convert import converted
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.gguf import open_gguf
from tests.oracle.checkpoints import weights, write_safetensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 10,
}
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (10, 8),
    f"{LAYER}input_layernorm.weight": (8,),
    f"{LAYER}post_attention_layernorm.weight": (8,),
    f"{LAYER}self_attn.q_proj.weight": (8, 8),
    f"{LAYER}self_attn.k_proj.weight": (4, 8),
    f"{LAYER}self_attn.v_proj.weight": (4, 8),
    f"{LAYER}self_attn.o_proj.weight": (8, 8),
    f"{LAYER}mlp.gate_proj.weight": (6, 8),
    f"{LAYER}mlp.up_proj.weight": (6, 8),
    f"{LAYER}mlp.down_proj.weight": (8, 6),
}


class Folder:
    """A checkpoint that a test may spoil before it is converted."""

    def __init__(self, path):
        self.path = path
        self.config = dict(CONFIG)
        self.parts = {"model.safetensors": {name: weights(name, shape) for name, shape in SHAPES.items()}}
        self.others = {}
        self.dtype = "F32"

    @property
    def tensors(self):
        return self.parts["model.safetensors"]

    def files(self):
        self.path.mkdir(exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        for name, tensors in self.parts.items():
            write_safetensors(self.path / name, tensors, self.dtype)
        for name, content in self.others.items():
            (self.path / name).write_bytes(content)
        return {path.name: path for path in self.path.iterdir()}

    def convert(self):
        target = self.path.with_suffix(".gguf")
        target.write_bytes(b"".join(converted(self.files())))
        return open_gguf(target)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "model")


def values(file, name):
    info = file.tensors[name]
    return dequantize(info.type, file.data(name), info.shape)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_keep_their_types_and_vectors_become_float32(folder, dtype):
    folder.dtype = dtype
    with folder.convert() as file:
        assert file.tensors["token_embd.weight"].type.name == dtype
        assert file.tensors["output_norm.weight"].type.name == "F32"
        wanted = folder.tensors[f"{LAYER}mlp.down_proj.weight"]
        assert np.allclose(values(file, "blk.0.ffn_down.weight"), wanted, rtol=2e-2)


def test_rows_of_queries_and_keys_become_neighbours(folder):
    with folder.convert() as file:
        stored = folder.tensors[f"{LAYER}self_attn.q_proj.weight"]
        assert np.array_equal(values(file, "blk.0.attn_q.weight"), stored[[0, 2, 1, 3, 4, 6, 5, 7]])
        stored = folder.tensors[f"{LAYER}self_attn.k_proj.weight"]
        assert np.array_equal(values(file, "blk.0.attn_k.weight"), stored[[0, 2, 1, 3]])


def test_a_tied_head_is_not_written_twice(folder):
    folder.config["tie_word_embeddings"] = True
    with folder.convert() as file:
        assert "output.weight" not in file.tensors


def test_parts_are_one_model(folder):
    moved = "model.norm.weight"
    folder.parts["b.safetensors"] = {moved: folder.tensors.pop(moved)}
    with folder.convert() as file:
        assert len(file.tensors) == len(SHAPES)


def test_names_below_a_folder_are_those_without_it(folder):
    files = {f"down/load/{name}": path for name, path in folder.files().items()}
    with Checkpoint(files) as checkpoint:
        assert set(checkpoint.tensors) == set(SHAPES)


def test_parts_that_see_or_hear_are_left_out(folder):
    folder.tensors["model.vision_tower.x.weight"] = np.zeros((2, 2), np.float32)
    with folder.convert() as file:
        assert len(file.tensors) == len(SHAPES)


def index(**parts):
    return {"model.safetensors.index.json": json.dumps({"weight_map": parts}).encode()}


def spoiled(**changes):
    """What spoils a folder: changed keys of the config."""
    return lambda folder: folder.config.update(changes)


def added(name, shape=(8,)):
    return lambda folder: folder.tensors.update({name: np.zeros(shape, np.float32)})


SPOILED = {
    "unknown class": (spoiled(architectures=["NoModel"]), "config.json: architectures names 'NoModel'; known are"),
    "no class": (spoiled(architectures=None), "config.json: architectures is None"),
    "no layers": (spoiled(num_hidden_layers=None), "config.json: num_hidden_layers is None, expected a whole number"),
    "text for a number": (spoiled(hidden_size="8"), "config.json: hidden_size is '8', expected a whole number"),
    "a rope nobody knows": (
        spoiled(rope_scaling={"rope_type": "bent"}),
        "config.json: rope_parameters: rope_type is 'bent'",
    ),
    "a rope without factor": (
        spoiled(rope_scaling={"rope_type": "linear"}),
        "config.json: rope_parameters: factor is None, expected a number",
    ),
    "heads that do not fit": (
        spoiled(num_attention_heads=3),
        "tensor 'model.layers.0.self_attn.q_proj.weight', F32 [8, 8], does not fit the config",
    ),
    "foreign tensor": (added(f"{LAYER}wings.weight"), "tensor 'model.layers.0.wings.weight' is no part of a 'llama'"),
    "missing part": (
        lambda folder: folder.others.update(index(a="model.safetensors", b="gone.safetensors")),
        "gone.safetensors missing: model.safetensors.index.json names 2 parts",
    ),
    "an index that is none": (
        lambda folder: folder.others.update({"model.safetensors.index.json": b'{"weight_map": 5}'}),
        "model.safetensors.index.json: weight_map is no table",
    ),
    "doubled tensor": (
        lambda folder: folder.parts.update({"z.safetensors": {"model.norm.weight": np.zeros(8, np.float32)}}),
        "z.safetensors: tensor 'model.norm.weight' stands in another part too",
    ),
    "damaged part": (
        lambda folder: folder.others.update({"z.safetensors": b"rubbish and rubbish"}),
        "z.safetensors: no safetensors file",
    ),
    "tokenizer that is none": (
        lambda folder: folder.others.update({"tokenizer.json": b'{"model": {"type": "Magic"}}'}),
        "tokenizer.json: a model of type 'Magic'",
    ),
    "tokenizer that is no JSON": (
        lambda folder: folder.others.update({"tokenizer.json": b"{"}),
        "tokenizer.json: no JSON",
    ),
    "SentencePiece that is none": (
        lambda folder: folder.others.update({"tokenizer.model": b"{"}),
        "tokenizer.model: no SentencePiece model",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_what_is_wrong_is_named(folder, spoil, words):
    spoil(folder)
    with pytest.raises(ModelFileError) as error:
        folder.convert()
    assert words in str(error.value)
    assert str(folder.path) not in str(error.value)


def test_an_expert_that_is_missing_is_named(folder):
    folder.config |= {"architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 1}
    for name in [name for name in folder.tensors if ".mlp." in name]:
        del folder.tensors[name]
    for expert in (0, 2):
        folder.tensors[f"{LAYER}block_sparse_moe.experts.{expert}.w1.weight"] = np.zeros((6, 8), np.float32)
    with pytest.raises(ModelFileError, match=r"experts\.2\.w1\.weight': number 1 of those like it is missing"):
        folder.convert()


def test_a_folder_without_config_says_so(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {})
    with pytest.raises(ModelFileError, match=r"config\.json is missing"):
        Checkpoint({"model.safetensors": tmp_path / "model.safetensors"})
