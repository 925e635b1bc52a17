import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import ShapeError, UnsupportedOp
from ollama_zmq.formats.dequantize import SUPPORTED, dequantize
from ollama_zmq.formats.quants import QuantType, tensor_nbytes

KINDS = sorted(SUPPORTED, key=lambda kind: kind.id)
HALVES = {  # where the float16 scales of a block lie
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "IQ2_XXS": [0], "IQ2_XS": [0],
    "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0], "TQ1_0": [52], "TQ2_0": [64],
}  # fmt: skip


def draw_blocks(kind, n_blocks, seed):
    """Random blocks uint8 [n_blocks, block_nbytes] whose scales are finite, of both signs."""
    rng = np.random.default_rng(seed)
    if kind.name in ("F32", "F16", "BF16"):
        values = rng.normal(size=(n_blocks, 1)).astype(np.float32)
        stored = {"F32": values, "F16": values.astype(np.float16), "BF16": values.view(np.uint16)[:, 1:].copy()}
        return stored[kind.name].view(np.uint8)
    blocks = rng.integers(0, 256, size=(n_blocks, kind.block_nbytes), dtype=np.uint8)
    if kind is QuantType.MXFP4:  # the gguf package warns of infinities
        blocks[:, 0] = np.minimum(blocks[:, 0], 250)
    if kind is QuantType.IQ1_M:  # the bits of its scale stand in the upper ones of four words
        scale = rng.normal(size=(n_blocks, 1)).astype(np.float16).view(np.uint16)
        blocks[:, 49::2] = blocks[:, 49::2] & 0x0F | ((scale >> [0, 4, 8, 12] & 15) << 4)
    for at in HALVES.get(kind.name, []):
        blocks[:, at : at + 2] = rng.normal(size=(n_blocks, 1)).astype(np.float16).view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(n_blocks=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_agrees_with_the_gguf_package_bit_for_bit(kind, n_blocks, seed):
    blocks = draw_blocks(kind, n_blocks, seed)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType(kind.id)).reshape(n_blocks, -1)
    found = dequantize(kind, blocks.tobytes(), (n_blocks, kind.block_size))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_a_large_tensor_is_one_tensor(monkeypatch):
    monkeypatch.setattr("ollama_zmq.formats.dequantize.PIECE_NBYTES", 50)
    blocks = draw_blocks(QuantType.Q4_0, 9, seed=1)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(dequantize(QuantType.Q4_0, blocks.tobytes(), (9, 32)), expected)


def test_a_type_without_dequantiser_is_named():
    with pytest.raises(UnsupportedOp, match="tensor type Q1_0 cannot be dequantized"):
        dequantize(QuantType.Q1_0, bytes(18), (128,))


@pytest.mark.parametrize("surplus", [-1, 1])
def test_wrong_length_is_refused(surplus):
    nbytes = tensor_nbytes(QuantType.Q8_0, (2, 32))
    with pytest.raises(ShapeError, match=f"{nbytes + surplus} bytes of Q8_0"):
        dequantize(QuantType.Q8_0, bytes(nbytes + surplus), (2, 32))
