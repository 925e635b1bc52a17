"""Write a llama-shaped GGUF of random weights, to measure speed at real sizes. Its text means nothing.

    python benchmarks/synthetic_model.py 1b OUT.gguf                  Llama-3.2-1B's shape, tied output, Q4_K_M: 0.8 GB
    python benchmarks/synthetic_model.py 8b OUT.gguf                  Llama-3.1-8B's shape, 4.9 GB
    python benchmarks/synthetic_model.py 1b OUT.gguf --mix f16 --vocabulary 32000

Tensor types are mixed as llama.cpp's Q4_K_M mixes them (Q6_K for the output, the values and the down projections of a
quarter of the layers and every third in between), or are all Q8_0 or F16. Weights have standard deviation 0.02, so
hidden states neither vanish nor overflow. One tensor at a time is in memory. Needs the package gguf (extra ``test``).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import gguf
import numpy as np

STD = 0.02
UNIFORM_STD = {8: 73.9, 16: 18918.0}  # of all signed numbers of that many bits
Q4_K_STD, Q4_K_MEAN = 260.0, 7.5  # of scale * q - 7.5 * min in units of d; 7.5 is the mean of q
Q6_K_STD = 18.5 * UNIFORM_STD[8]
FILE_TYPES = {"q4_k_m": 15, "q8_0": 7, "f16": 1}
CONTROL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>")
F16, Q8_0, Q4_K, Q6_K = (gguf.GGMLQuantizationType[name] for name in ("F16", "Q8_0", "Q4_K", "Q6_K"))


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    ffn_size: int
    tied: bool
    context_length: int = 131_072
    rope_theta: float = 500_000.0


@dataclass(frozen=True)
class Tensor:
    """One tensor to write; ``kind`` None is a norm of ones, float32 [columns]."""

    name: str
    rows: int
    columns: int
    kind: gguf.GGMLQuantizationType | None


SHAPES = {
    "tiny": Shape(2, 256, 4, 2, 512, tied=True, context_length=512),
    "1b": Shape(16, 2048, 32, 8, 8192, tied=True),
    "8b": Shape(32, 4096, 32, 8, 14336, tied=False),
}


def tensors(shape: Shape, mix: str, n_tokens: int) -> Iterator[Tensor]:
    """Every tensor of the model in file order."""
    D, F, n = shape.hidden_size, shape.ffn_size, shape.n_layers
    KV = D // shape.n_heads * shape.n_kv_heads
    usual, better = {"q4_k_m": (Q4_K, Q6_K), "q8_0": (Q8_0, Q8_0), "f16": (F16, F16)}[mix]
    yield Tensor("token_embd.weight", n_tokens, D, better if shape.tied else usual)
    for i in range(n):
        more = better if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2 else usual
        yield Tensor(f"blk.{i}.attn_norm.weight", 1, D, None)
        yield Tensor(f"blk.{i}.attn_q.weight", D, D, usual)
        yield Tensor(f"blk.{i}.attn_k.weight", KV, D, usual)
        yield Tensor(f"blk.{i}.attn_v.weight", KV, D, more)
        yield Tensor(f"blk.{i}.attn_output.weight", D, D, usual)
        yield Tensor(f"blk.{i}.ffn_norm.weight", 1, D, None)
        yield Tensor(f"blk.{i}.ffn_gate.weight", F, D, usual)
        yield Tensor(f"blk.{i}.ffn_up.weight", F, D, usual)
        yield Tensor(f"blk.{i}.ffn_down.weight", D, F, more)
    yield Tensor("output_norm.weight", 1, D, None)
    if not shape.tied:
        yield Tensor("output.weight", n_tokens, D, better)


def row_nbytes(tensor: Tensor) -> int:
    """Bytes of one row in the file."""
    if tensor.kind is None:
        return 4 * tensor.columns
    block_size, block_nbytes = gguf.GGML_QUANT_SIZES[tensor.kind]
    return tensor.columns // block_size * block_nbytes


def draw(tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
    """The tensor's bytes uint8 [rows, row_nbytes], or float32 ones for a norm."""
    if tensor.kind is None:
        return np.ones(tensor.columns, np.float32)
    nbytes = tensor.rows * row_nbytes(tensor)
    data = np.frombuffer(bytearray(rng.bytes(nbytes)), np.uint8)
    if tensor.kind is F16:
        values = data.view(np.int16)
        values.view(np.float16)[:] = values * np.float32(STD / UNIFORM_STD[16])
    else:
        blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[tensor.kind][1])
        for at, scale in SCALES[tensor.kind].items():
            blocks[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
    return data.reshape(tensor.rows, -1)


SCALES = {  # where a block keeps its float16 scales, and what they must be
    Q8_0: {0: STD / UNIFORM_STD[8]},
    Q4_K: {0: STD / Q4_K_STD, 2: Q4_K_MEAN * STD / Q4_K_STD},
    Q6_K: {208: STD / Q6_K_STD},
}


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def merges(n: int) -> list[str]:
    """*n* merges that give different tokens: pairs of bytes, then a pair and a byte; lower-case letters come first."""
    characters = sorted(byte_characters(), key=lambda c: (not c.islower(), c))
    pairs = [f"{a} {b}" for a, b in islice(product(characters, repeat=2), n)]
    triples = (f"{pair.replace(' ', '')} {c}" for pair, c in product(pairs, characters))
    return pairs + list(islice(triples, n - len(pairs)))


def add_vocabulary(writer: gguf.GGUFWriter, n_tokens: int) -> None:
    """Add a byte-level BPE vocabulary of exactly *n_tokens*: control tokens, the bytes, and merges."""
    joined = merges(n_tokens - 256 - len(CONTROL_TOKENS))
    tokens = [*CONTROL_TOKENS, *byte_characters(), *(merge.replace(" ", "") for merge in joined)]
    writer.add_vocab_size(n_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL_TOKENS) + [1] * (n_tokens - len(CONTROL_TOKENS)))
    writer.add_token_merges(joined)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def write(path: Path, shape: Shape, mix: str, n_tokens: int, seed: int) -> None:
    """Write the model to *path*, one tensor after another."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("synthetic")
    writer.add_file_type(FILE_TYPES[mix])
    writer.add_quantization_version(2)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_dimension_count(shape.hidden_size // shape.n_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    add_vocabulary(writer, n_tokens)
    everything = list(tensors(shape, mix, n_tokens))
    for tensor in everything:
        nbytes = tensor.rows * row_nbytes(tensor)
        if tensor.kind is None:
            writer.add_tensor_info(tensor.name, (tensor.columns,), np.dtype(np.float32), nbytes)
        else:
            stored = (tensor.rows, row_nbytes(tensor))
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), nbytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor in everything:
        writer.write_tensor_data(draw(tensor, rng))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a llama-shaped GGUF of random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mix", choices=FILE_TYPES, default="q4_k_m")
    parser.add_argument("--vocabulary", type=int, default=128_256, metavar="V", help="tokens; default 128256")
    parser.add_argument("--seed", type=int, default=1234)
    given = parser.parse_args()
    if given.vocabulary < 256 + len(CONTROL_TOKENS):
        parser.error(f"--vocabulary {given.vocabulary}: at least {256 + len(CONTROL_TOKENS)}")
    write(given.out, SHAPES[given.shape], given.mix, given.vocabulary, given.seed)
    print(f"{given.out}: {given.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
