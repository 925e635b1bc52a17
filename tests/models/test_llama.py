"""llama against a forward pass of its own, and what its files may and may not hold."""

import gguf
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.llama import Llama
from ollama_zmq.models.network import Network
from tests.models.reference_llama import ReferenceLlama
from tests.models.running import running
from tests.models_tiny import write_tiny_llama

TOKENS = np.random.default_rng(1).integers(3, 250, size=70, dtype=np.int32)
VARIANTS = {
    "plain": {},
    "one head for each query": {"n_kv_heads": 4},
    "one head for all": {"n_kv_heads": 1, "n_heads": 6},
    "heads wider than D / H": {"head_dim": 32},
    "rope factors": {"rope_freqs": True, "rope_theta": 5e5},
    "biases": {"biases": True, "ffn_biases": True},
    "separate output": {"tied": False, "output_kind": "F32"},
    "experts": {"experts": (6, 2)},
    "one expert of many": {"experts": (20, 1), "n_layers": 2},
    "every expert": {"experts": (3, 3), "kind": "Q8_0"},
    "Q8_0": {"kind": "Q8_0"},
    "Q4_1": {"kind": "Q4_1"},
    "Q4_K": {"kind": "Q4_K", "n_layers": 2},
}
METADATA = {
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def logits_of(device, path):
    with running(device, path) as model:
        return model.run(TOKENS)


def nmse(out, expected):
    return np.sum((out - expected) ** 2) / np.sum(expected**2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_an_independent_forward_pass(device, tmp_path, variant):
    path = write_tiny_llama(tmp_path / "tiny.gguf", **VARIANTS[variant])
    out, expected = logits_of(device, path), ReferenceLlama(path).logits(TOKENS)
    assert nmse(out, expected) < 1e-8
    assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("part", ["blk.1.attn_q.bias", "blk.2.ffn_down.bias", "rope_freqs.weight", "output.weight"])
def test_every_optional_tensor_matters(device, tmp_path, part):
    """Without it the logits are others."""
    whole = {"biases": True, "ffn_biases": True, "rope_freqs": True, "tied": False}
    path = write_tiny_llama(tmp_path / "whole.gguf", **whole)
    less = rewritten(path, tmp_path / "less.gguf", drop=part)
    assert nmse(logits_of(device, less), logits_of(device, path)) > 1e-5


def test_linear_scaling_divides_the_positions(device, tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    scaled = rewritten(path, tmp_path / "scaled.gguf", numbers={"llama.rope.scaling.factor": 4.0})
    out, expected = logits_of(device, scaled), ReferenceLlama(scaled).logits(TOKENS)
    assert nmse(out, expected) < 1e-8
    assert nmse(logits_of(device, path), expected) > 1e-5


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "token_embd.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path, name):
    path = rewritten(write_tiny_llama(tmp_path / "tiny.gguf"), tmp_path / "less.gguf", drop=name)
    with open_gguf(path) as file, pytest.raises(ModelFileError, match=f"tensor '{name}' is missing"):
        Network(file)


def test_a_tensor_that_nothing_reads_is_named(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    more = rewritten(path, tmp_path / "more.gguf", add={"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    with open_gguf(more) as file, pytest.raises(ModelFileError, match=r"blk\.0\.attn_q_norm\.weight.*not supported"):
        Network(file)


MISFITS = [
    ("blk.0.attn_q.weight", (48, 64)),
    ("blk.1.attn_k.weight", (32, 63)),
    ("blk.1.ffn_norm.weight", (63,)),
    ("token_embd.weight", (300, 32)),
]


@pytest.mark.parametrize(("name", "shape"), MISFITS)
def test_a_tensor_of_another_shape_is_named(tmp_path, name, shape):
    path = write_tiny_llama(tmp_path / "tiny.gguf", tied=False)
    other = rewritten(path, tmp_path / "other.gguf", drop=name, add={name: np.ones(shape, np.float32)})
    with open_gguf(other) as file, pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
        Network(file)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": 0}, "llama.block_count = 0"),
        ({"llama.embedding_length": "64"}, "llama.embedding_length = '64'"),
        ({"llama.attention.head_count": True}, "llama.attention.head_count = True"),
        ({"llama.attention.head_count_kv": 0}, "llama.attention.head_count_kv = 0"),
        ({"llama.context_length": np.array([2, 4])}, "context_length = [2, 4] differs from layer to layer"),
        ({"llama.context_length": np.arange(99)}, "9, 10, 11, …] differs"),
        (
            {"llama.attention.head_count_kv": np.full(3, 2)},
            "tiny.gguf: llama.attention.head_count_kv = 3 numbers, expected one for each of 2 layers",
        ),
        ({"llama.attention.head_count_kv": np.array([2.0, 2.0])}, "head_count_kv = 2.0"),
        ({"llama.attention.head_count_kv": np.array([], int)}, "head_count_kv = 0 numbers"),
        ({"llama.attention.head_count_kv": 3}, "head_count = 4, expected a multiple of head_count_kv 3"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon = nan"),
        ({"llama.expert_count": 8}, "llama.expert_used_count = 0, expected 1 to llama.expert_count = 8"),
        ({"llama.rope.dimension_count": 15}, "llama.rope.dimension_count = 15, expected an even number up to"),
        ({"llama.rope.dimension_count": 18}, "llama.rope.dimension_count = 18, expected an even number up to"),
        ({"llama.nextn_predict_layers": 2}, "llama.nextn_predict_layers = 2, expected less than block_count 2"),
        ({"llama.expert_count": 2, "llama.expert_used_count": 3}, "llama.expert_used_count = 3"),
        ({"llama.rope.scaling.type": "bent"}, "llama.rope.scaling.type = 'bent'"),
        ({"llama.rope.scaling.factor": -2.0}, "llama.rope.scaling.factor = -2.0"),
    ],
)
def test_impossible_keys_are_named(changes, named):
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    with pytest.raises(ModelFileError) as caught:
        Llama.of(Keys(metadata, "llama", "tiny.gguf"))
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 1.0),
        ({"rope.scaling.factor": 4.0}, 0.25),
        ({"rope.scale_linear": 2.0}, 0.5),
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, 0.25),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, 1.0),
        ({"rope.scaling.factor": 8.0, "rope.scaling.type": "llama3"}, 1.0),
        ({"rope.scaling.factor": 0.0}, 1.0),
    ],
)
def test_rope_scale_is_read_as_llama_cpp_reads_it(changes, scale):
    model = Llama.of(Keys(METADATA | {f"llama.{key}": value for key, value in changes.items()}, "llama"))
    assert model.rope.scale == scale


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_an_array_of_equal_numbers_is_one_number(dtype):
    model = Llama.of(Keys(METADATA | {"llama.attention.head_count_kv": np.full(2, 2, dtype)}, "llama"))
    assert model == Llama.of(Keys(METADATA | {"llama.attention.head_count_kv": 2}, "llama"))


def test_tensors_of_a_picture_encoder_do_not_keep_the_text_part_from_running(device, tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    beside = {name: np.ones(64, np.float32) for name in ("v.blk.0.ln1.weight", "mm.0.weight", "mtp.norm.weight")}
    more = rewritten(path, tmp_path / "more.gguf", add=beside)
    np.testing.assert_array_equal(logits_of(device, more), logits_of(device, path))


def rewritten(path, target, *, drop="", add=None, numbers=None):
    """A copy of the file at *path* without tensor *drop*, with the tensors of *add* and the float keys of *numbers*."""
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(str(target), "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, field.contents(), field.types[0])
    for name, value in (numbers or {}).items():
        writer.add_float32(name, value)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, array in (add or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
