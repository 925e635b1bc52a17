"""Llama's forward pass in float64 NumPy, written from the papers; shares no code with the package's ops or devices.

RMSNorm: Zhang & Sennrich 2019. Rotary embedding: Su et al. 2021. Grouped queries: Ainslie et al. 2023. SwiGLU: Shazeer
2020. Experts: Jiang et al. 2024, all of them computed, those that are not among the best with a share of 0. Keys and
values are rounded to float16, as a KV cache of that type does; ``kv_dtype`` can turn that off.
"""

from __future__ import annotations

import gguf
import numpy as np


class ReferenceLlama:
    """A llama GGUF, read with the gguf package."""

    def __init__(self, path) -> None:
        reader = gguf.GGUFReader(path)
        self.tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
        self.keys = {name.removeprefix("llama."): field.contents() for name, field in reader.fields.items()}

    def logits(self, token_ids, kv_dtype=np.float16):
        """Logits [T, V] of a sequence that starts at position 0."""
        h = self.tensors["token_embd.weight"][np.asarray(token_ids)]
        for i in range(self.keys["block_count"]):
            h = h + self._attention(i, self._norm(h, f"blk.{i}.attn_norm"), kv_dtype)
            h = h + self._feed_forward(i, self._norm(h, f"blk.{i}.ffn_norm"))
        output = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return self._norm(h, "output_norm") @ output.T

    def _norm(self, h, name):
        eps = self.keys["attention.layer_norm_rms_epsilon"]
        return h * self.tensors[f"{name}.weight"] / np.sqrt((h**2).mean(axis=1, keepdims=True) + eps)

    def _linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0.0)

    def _attention(self, i, x, kv_dtype):
        T, H, G = len(x), self.keys["attention.head_count"], self.keys["attention.head_count_kv"]
        q = self._rotate(self._linear(x, f"blk.{i}.attn_q").reshape(T, H, -1))
        k = self._rotate(self._linear(x, f"blk.{i}.attn_k").reshape(T, G, -1)).astype(kv_dtype).astype(np.float64)
        v = self._linear(x, f"blk.{i}.attn_v").reshape(T, G, -1).astype(kv_dtype).astype(np.float64)
        heads = []
        for h in range(H):
            g = h * G // H
            scores = q[:, h] @ k[:, g].T / np.sqrt(q.shape[-1])
            scores[np.triu_indices(T, 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ v[:, g])
        return self._linear(np.concatenate(heads, axis=1), f"blk.{i}.attn_output")

    def _rotate(self, x):
        """Neighbouring values (2i, 2i + 1) as complex numbers, turned by position * frequency i."""
        half = x.shape[-1] // 2
        frequency = self.keys.get("rope.freq_base", 10000.0) ** (-np.arange(half) / half)
        if self.keys.get("rope.scaling.type", "linear") == "linear":
            frequency = frequency / self.keys.get("rope.scaling.factor", 1.0)
        frequency = frequency / self.tensors.get("rope_freqs.weight", np.ones(half))
        turn = np.exp(1j * np.outer(np.arange(len(x)), frequency))[:, None, :]
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def _feed_forward(self, i, x):
        if not self.keys.get("expert_count", 0):
            return self._gated(x, *(self._matrix(f"blk.{i}.ffn_{part}") for part in ("gate", "up", "down")))
        shares = np.exp(self._linear(x, f"blk.{i}.ffn_gate_inp"))
        shares /= shares.sum(axis=1, keepdims=True)
        shares = np.where(shares >= np.sort(shares, axis=1)[:, -self.keys["expert_used_count"], None], shares, 0)
        stacks = [self.tensors[f"blk.{i}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")]
        each = [self._gated(x, *((matrix[e], 0.0) for matrix in stacks)) for e in range(self.keys["expert_count"])]
        return np.einsum("te,etd->td", shares / shares.sum(axis=1, keepdims=True), each)

    def _matrix(self, name):
        return self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias", 0.0)

    def _gated(self, x, gate, up, down):
        g, u = x @ gate[0].T + gate[1], x @ up[0].T + up[1]
        return (g / (1 + np.exp(-g)) * u) @ down[0].T + down[1]
