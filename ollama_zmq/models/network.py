"""A model file as programs: what every architecture has in common, an embedding, layers and an output head.

A :class:`Network` is read from a GGUF header. It touches no device and no weight bytes: it says which programs there
are, which tensors they need, and what they cost in memory.
"""

from __future__ import annotations

from ollama_zmq.errors import ModelFileError, OpError
from ollama_zmq.formats.gguf import GgufFile
from ollama_zmq.models.architecture import LayerValues
from ollama_zmq.models.registry import architecture
from ollama_zmq.ops.builder import Builder, Value
from ollama_zmq.ops.program import PAGE_SLOTS, CacheSpec, Program, WeightSpec

EMBED, HEAD_NORM, HEAD, ROPE_FACTORS = "token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"
BESIDE_TEXT = ("v.", "mm.", "mtp.")  # an encoder of pictures, its projector, heads that guess more tokens
DERIVED = (".attn_rot_embd.weight", ".rope_freqs.weight")  # per-layer copies of what the header says, in old files


class Network:
    """A model file as programs: which layers, which tensors, how many bytes.

    Raises:
        ModelFileError: unknown architecture, or a tensor is missing, has the wrong shape, or would not be used.
    """

    def __init__(self, gguf: GgufFile, kv_type: str = "f16") -> None:
        self.gguf = gguf
        self.kv_type = kv_type
        self.architecture = architecture(gguf.architecture)
        self.model = self.architecture.from_metadata(gguf.metadata, gguf.tensors)
        self.layers = [self._layer_weights(i) for i in range(self.model.n_layers)]
        self.embedding = self._weight(EMBED)
        self.output_norm = self._weight(HEAD_NORM)
        self.output = self._weight(HEAD) if HEAD in gguf.tensors else self.embedding
        self.rope_factors = self._weight(ROPE_FACTORS) if ROPE_FACTORS in gguf.tensors else None
        self._check()

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return self.model.n_layers

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.model.hidden_size

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.output.shape[0]

    @property
    def context_length(self) -> int:
        """The context the model was trained for."""
        return self.model.context_length

    @property
    def cache(self) -> CacheSpec:
        """The KV cache that every layer has."""
        return CacheSpec("kv", self.model.n_kv_heads, self.model.head_dim, self.model.head_dim, self.kv_type)

    def layer_nbytes(self, i: int) -> int:
        """Return the bytes of layer *i*'s weights in the file."""
        return sum(self.gguf.tensors[spec.name].nbytes for spec in self.layers[i].values())

    def head_nbytes(self) -> int:
        """Return the bytes of the embedding and the output head in the file; a tied weight counts once."""
        return sum(self.gguf.tensors[name].nbytes for name in {self.embedding.name, self.output.name})

    def kv_nbytes(self, n_tokens: int) -> int:
        """Return the bytes of one layer's keys and values for *n_tokens* tokens, in whole pages."""
        return self.cache.nbytes(-(-n_tokens // PAGE_SLOTS))

    def layers_program(self, layers: range) -> Program:
        """Hidden state [T, D] -> hidden state [T, D] after *layers*; [R, D], the rows asked for, after the last one.

        Before layer 0 the hidden state is rows of the embedding, which whoever runs the first stage looks up.
        """
        ops = Builder(f"layers {layers.start}..{layers.stop - 1}")
        hidden_state = self._run_layers(ops, ops.input("hidden_state", ("T", self.hidden_size)), layers)
        if layers.stop == self.n_layers:
            hidden_state = ops.take_rows(hidden_state, ops.rows)
        return ops.program("hidden_state", hidden_state)

    def head_program(self) -> Program:
        """Hidden state [T, D] -> logits [R, V] of the rows asked for."""
        ops = Builder("head")
        hidden_state = ops.input("hidden_state", ("T", self.hidden_size))
        return ops.program("logits", self._run_head(ops, hidden_state))

    def whole_program(self) -> Program:
        """Token ids [T] -> logits [R, V]: all of it on one device."""
        ops = Builder("whole")
        token_ids = ops.input("token_ids", ("T",), "int32")
        rows = ops.embed(token_ids, ops.weight(self.embedding))
        hidden_state = self._run_layers(ops, rows, range(self.n_layers))
        return ops.program("logits", self._run_head(ops, hidden_state))

    def _run_layers(self, ops: Builder, hidden_state: Value, layers: range) -> Value:
        if layers.start == 0:
            hidden_state = self.model.enter(ops, hidden_state)
        factors = ops.weight(self.rope_factors) if self.rope_factors and layers else None
        for i in layers:
            given = LayerValues(
                weights={name: ops.weight(spec) for name, spec in self.layers[i].items()},
                cache=self._cache(ops, i),
                positions=ops.positions,
                rope_factors=factors,
            )
            hidden_state = self.model.layer(ops, i, hidden_state, given)
        return hidden_state

    def _cache(self, ops: Builder, i: int) -> Value:
        spec = self.cache
        heads = {"n_kv_heads": spec.n_kv_heads, "head_dim": spec.head_dim, "value_dim": spec.value_dim}
        return ops.cache(f"kv.{i}", **heads, kv_type=spec.type)

    def _run_head(self, ops: Builder, hidden_state: Value) -> Value:
        wanted = ops.take_rows(hidden_state, ops.rows)
        return self.model.head(ops, wanted, ops.weight(self.output_norm), ops.weight(self.output))

    def _layer_weights(self, i: int) -> dict[str, WeightSpec]:
        found = {}
        for name, required in self.model.layer_weights.items():
            full_name = f"blk.{i}.{name}" if name.endswith(".bias") else f"blk.{i}.{name}.weight"
            if required or full_name in self.gguf.tensors:
                found[name] = self._weight(full_name)
        return found

    def _check(self) -> None:
        """Refuse tensors that do not fit together, and those that no op reads: ignored, they would spoil the text."""
        try:
            program = self.whole_program()
        except OpError as error:
            raise ModelFileError(f"{self.gguf.path}: the tensors do not fit: {error}") from error
        if self.embedding.shape[1] != self.hidden_size:
            found = f"has {self.embedding.shape[1]} columns, expected {self.hidden_size}"
            raise ModelFileError(f"{self.gguf.path}: tensor {EMBED!r} {found}", tensor=EMBED)
        read = {weight.name for weight in program.weights}
        for name in self.gguf.tensors:
            if name not in read and not name.endswith(DERIVED) and not name.startswith(BESIDE_TEXT):
                raise ModelFileError(
                    f"{self.gguf.path}: tensor {name!r} is not supported in this architecture", tensor=name
                )

    def _weight(self, name: str) -> WeightSpec:
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.gguf.path}: tensor {name!r} is missing", tensor=name)
        return WeightSpec(name, tensor.type.id, tensor.shape)
