"""Checkpoints whose weights follow from the names of their tensors: the same on every machine, kept nowhere."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

N_TOKENS = 48


def token_ids(vocab_size):
    """48 token ids, int32, the first of them twice."""
    return np.array([(7 * i * i + 3 * i + 1) % vocab_size for i in range(N_TOKENS)], np.int32)


def weights(name, shape, salt=0):
    """float32 values for the tensor called *name*: vectors of norms about 1, biases about 0, matrices that keep sizes.

    *salt* gives others: where two experts are nearly equal, a cache of half precision chooses between them.
    Deviations are large enough for soft-caps, gates, windows and the choice of experts to matter.
    """
    rng = np.random.RandomState(zlib.crc32(name.encode()) ^ salt)
    drawn = rng.standard_normal(shape)
    if "norm" in name.lower() and name.endswith("weight"):
        centre = 0.0 if "layernorm1p" in name else 1.0
        return (centre + 0.3 * drawn).astype(np.float32)
    if name.endswith("act_fn.eps"):  # where the left side of xIELU ends: below 0
        return np.float32(-0.1 * abs(drawn))
    if len(shape) < 2:
        return (0.3 * drawn).astype(np.float32)
    return (drawn * shape[-1] ** -0.5).astype(np.float32)


def write_safetensors(path, tensors, dtype="F32"):
    """Write *tensors*, name -> float32 values, as a safetensors file."""
    header, parts, offset = {}, [], 0
    for name, values in tensors.items():
        raw = as_stored(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(raw)]}
        parts.append(raw)
        offset += len(raw)
    head = json.dumps(header).encode()
    Path(path).write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))


def as_stored(values, dtype):
    """The bytes of float32 *values* in a type of safetensors; BF16 cuts."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values, {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_checkpoint(folder, config, shapes, dtype="F32", salt=0):
    """Write ``config.json`` and the safetensors of *shapes*, name -> shape; return names and paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", {n: weights(n, tuple(s), salt) for n, s in shapes.items()}, dtype)
    return {path.name: path for path in folder.iterdir()}
