"""Models whose matrices are quantized compute what the numbers their blocks stand for compute, in every architecture.

The CPU device rounds activations to 8 bits in products with quantized matrices; the reference device is given the same
numbers as float32 and rounds nothing.
"""

import gguf as package
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from ollama_zmq.convert.convert import converted
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import open_device
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.gguf_writer import NewTensor, gguf_chunks
from ollama_zmq.formats.quants import QuantType
from tests.models.running import running
from tests.oracle.checkpoints import token_ids, write_checkpoint
from tests.oracle.test_oracle import golden_of, nmse

MAX_NMSE = 2.5e-3  # what two right engines differ by: 28 products of activations rounded to 8 bits, one after the other
WIDER = {32: 128, 64: 256, 96: 256}  # sizes of a golden -> whole blocks of 256; the vocabulary stays
KEPT = ("norm", "ffn_gate_inp.", "rope_")  # tensors that llama.cpp never quantizes, by a part of their names


def q4_k_blocks(rows):
    """Blocks of Q4_K, uint8 [..., 144 a block], for *rows* whose length is a multiple of 256.

    Each run of 32 numbers has a scale and a minimum of 6 bits, each over a float16 scale of its block.
    """
    x = rows.reshape(-1, 8, 32)
    low = np.minimum(x.min(axis=2), 0.0)
    step, low = (x.max(axis=2) - low) / 15, -low
    d, dmin = ((v.max(axis=1, keepdims=True) / 63).astype(np.float16) for v in (step, low))
    steps, lows = (
        np.clip(np.rint(v / np.maximum(u, 1e-12)), 0, 63).astype(np.uint8) for v, u in ((step, d), (low, dmin))
    )
    width = np.maximum(d.astype(np.float32) * steps, 1e-12)[..., None]
    q = np.clip(np.rint((x + (dmin.astype(np.float32) * lows)[..., None]) / width), 0, 15).astype(np.uint8)
    scales = np.concatenate(
        [
            steps[:, :4] | (steps[:, 4:] >> 4) << 6,
            lows[:, :4] | (lows[:, 4:] >> 4) << 6,
            steps[:, 4:] & 15 | (lows[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    nibbles = (q[:, 0::2] | q[:, 1::2] << 4).reshape(-1, 128)
    blocks = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), scales, nibbles], axis=1)
    return blocks.reshape(*rows.shape[:-1], -1)


def blocks_of(kind, values):
    """The blocks of type *kind*, uint8, for float32 *values*."""
    if kind is QuantType.Q4_K:
        return q4_k_blocks(values)
    return quantize(values, package.GGMLQuantizationType(kind.id))


def write_pair(source, folder, kind):
    """Write *source* with its matrices in *kind*, and with the numbers those stand for; return both paths and names."""
    quantized, plain, names = [], [], []
    with open_gguf(source) as file:
        for name, info in file.tensors.items():
            values = np.frombuffer(file.data(name), np.float32).reshape(info.shape).copy()
            stored, stored_as = values, QuantType.F32
            if len(info.shape) > 1 and info.shape[-1] % kind.block_size == 0 and not any(part in name for part in KEPT):
                stored, stored_as = blocks_of(kind, values), kind
                values = dequantize(stored, package.GGMLQuantizationType(kind.id)).reshape(info.shape)
                names.append(name)
            for tensors, raw, used in ((quantized, stored, stored_as), (plain, values, QuantType.F32)):
                chunk = np.ascontiguousarray(raw).tobytes()
                tensors.append(NewTensor(name, used, info.shape, lambda chunk=chunk: [chunk]))
        metadata = dict(file.metadata.items())
    paths = folder / "quantized.gguf", folder / "plain.gguf"
    for path, tensors in zip(paths, (quantized, plain), strict=True):
        path.write_bytes(b"".join(gguf_chunks(metadata, tensors)))
    return *paths, names


def write_wide(name, folder):
    """Write the tiny model *name* with four times its width; return the path and token ids."""
    config, shapes, _ = golden_of(name)
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    times = {key: WIDER.get(config[key], 4 * config[key]) for key in sizes}
    wide = {tensor: [WIDER.get(n, n) for n in shape] for tensor, shape in shapes.items()}
    path = folder / "wide.gguf"
    path.write_bytes(b"".join(converted(write_checkpoint(folder / name, config | times, wide))))
    return path, token_ids(config["vocab_size"])


def logits_of(path, ids, device):
    """Logits [T, V] of the model at *path* on a device by its name."""
    opened = open_device(device, budget=Budget(1 << 30))
    try:
        with running(opened, path) as stages:
            return stages.run(ids)
    finally:
        opened.close()


@pytest.mark.parametrize("kind", [QuantType.Q8_0, QuantType.MXFP4, QuantType.Q4_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "name",
    [
        "granite",
        "olmoe",
        pytest.param("llama-yarn", marks=pytest.mark.full),
        pytest.param("olmo2", marks=pytest.mark.full),
    ],
)
def test_quantized_matrices_are_what_their_numbers_are(name, kind, tmp_path):
    """At the middle one of all positions: where rounding chooses another expert, a whole row is another one."""
    source, ids = write_wide(name, tmp_path)
    quantized, plain, names = write_pair(source, tmp_path, kind)
    assert {"blk.1.attn_q.weight", "token_embd.weight"} <= set(names)
    found, wanted = logits_of(quantized, ids, "cpu"), logits_of(plain, ids, "reference")
    errors = [nmse(ours, exact) for ours, exact in zip(found, wanted, strict=True)]
    assert 0 < np.median(errors) <= MAX_NMSE


def test_blocks_of_q4_k_stand_for_numbers_near_those_given():
    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    back = dequantize(q4_k_blocks(values), package.GGMLQuantizationType.Q4_K)
    assert nmse(back, values) < 0.01
