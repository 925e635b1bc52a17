"""A model file as programs: what every architecture has in common, an embedding, layers and an output head.

A :class:`Network` is read from a GGUF header. It touches no device and no weight bytes: it says which programs there
are, which tensors they need, and what they cost in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from ollama_zmq.errors import ModelFileError, OpError
from ollama_zmq.formats.gguf import GgufFile
from ollama_zmq.models.architecture import Given, OfLayer, PagedKv, SlotState, State
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.names import as_written, belongs_to_text
from ollama_zmq.models.registry import architecture
from ollama_zmq.models.views import with_parts
from ollama_zmq.ops.builder import Builder, Value
from ollama_zmq.ops.program import Program, WeightSpec
from ollama_zmq.ops.state import PAGE_SLOTS, PagedKvSpec, SlotSpec, StateSpec

EMBED, HEAD = "token_embd.weight", "output.weight"
Specs = Mapping[str, WeightSpec]


class Network:
    """A model file as programs: which layers, which tensors, how many bytes.

    Attributes:
        gguf: the file under the names that programs use: what is fused in it stands apart.
        skipped: names of its tensors that are no part of the text model.

    Raises:
        ModelFileError: unknown architecture, or a tensor is missing, has the wrong shape, or would not be used.
    """

    def __init__(self, gguf: GgufFile, kv_type: str = "f16", num_ctx: int = 0) -> None:
        self.gguf = as_written(gguf)
        self.kv_type = kv_type
        name = self.gguf.architecture
        keys = Keys(self.gguf.metadata, name, gguf.path, num_ctx)
        self.model = architecture(name)(keys)
        self.skipped = self._keep_apart(keys)
        self.globals = self._weights("", {"token_embd": True, "output": False} | dict(self.model.globals))
        self.globals.setdefault("output", self.globals["token_embd"])
        self.layers = [self._weights(f"blk.{i}.", self.model.layer_weights(i)) for i in range(self.n_layers)]
        self._check()

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return self.model.sizes.n_layers

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.model.sizes.hidden_size

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.output.shape[0]

    @property
    def context_length(self) -> int:
        """The context the model was trained for."""
        return self.model.sizes.context_length

    @property
    def embedding(self) -> WeightSpec:
        """The matrix whose rows are what tokens begin as."""
        return self.globals["token_embd"]

    @property
    def output(self) -> WeightSpec:
        """The matrix that makes logits: the embedding where the file has no other."""
        return self.globals["output"]

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """The window of each group of layers that share page tables, in the order of the groups' numbers."""
        kept = (state for i in range(self.n_layers) for state in self.model.states(i))
        return tuple(sorted({state.window for state in kept if isinstance(state, PagedKv)}))

    @property
    def rewinds(self) -> bool:
        """Whether a sequence can go back to any earlier position; if not, drafts cannot be tried."""
        return not any(isinstance(state, SlotSpec) for i in range(self.n_layers) for state in self.states(i))

    def states(self, i: int) -> tuple[StateSpec, ...]:
        """What layer *i* keeps, or reads of an earlier layer."""
        return tuple(self._state(i, n, kept) for n, kept in enumerate(self.model.states(i)))

    def _state(self, i: int, n: int, kept: State) -> StateSpec:
        name = f"{i}.{n}" if n else f"{i}"
        if isinstance(kept, OfLayer):
            if not (0 <= kept.layer < i and kept.n < len(self.model.states(kept.layer))):
                raise ModelFileError(f"{self.gguf.path}: layer {i} reads state {kept.n} of layer {kept.layer}")
            return self.states(kept.layer)[kept.n]
        if isinstance(kept, SlotState):
            return SlotSpec(f"slot.{name}", kept.shape)
        sizes = kept.n_kv_heads, kept.head_dim, kept.value_dim
        return PagedKvSpec(f"kv.{name}", *sizes, self.kv_type, self.windows.index(kept.window), kept.window)

    @property
    def uncut(self) -> frozenset[int]:
        """The layers before which no stage may begin: they, or later ones, read the state of a layer before."""
        reads = (
            (i, kept.layer) for i in range(self.n_layers) for kept in self.model.states(i) if isinstance(kept, OfLayer)
        )
        return frozenset(cut for reader, source in reads for cut in range(source + 1, reader + 1))

    def layer_nbytes(self, i: int) -> int:
        """Return the bytes of layer *i*'s weights in the file."""
        return sum(self.gguf.tensors[spec.name].nbytes for spec in self.layers[i].values())

    def head_nbytes(self) -> int:
        """Return the bytes of the embedding and the output head in the file; a tied weight counts once."""
        return sum(self.gguf.tensors[name].nbytes for name in {self.embedding.name, self.output.name})

    def kv_nbytes(self, n_tokens: int) -> int:
        """Return the bytes of one layer's keys and values for *n_tokens* tokens, in whole pages: of the largest."""
        pages = -(-n_tokens // PAGE_SLOTS)
        return max(self._kept_nbytes(i, pages) for i in range(self.n_layers))

    def _kept_nbytes(self, i: int, pages: int) -> int:
        return sum(state.nbytes(pages) for state in self.states(i) if isinstance(state, PagedKvSpec))

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
            hidden_state = self.model.enter(ops, hidden_state, self._given(ops, {}, ()))
        for i in layers:
            states = tuple(ops.state(spec) for spec in self.states(i))
            hidden_state = self.model.layer(ops, i, hidden_state, self._given(ops, self.layers[i], states))
        return hidden_state

    def _run_head(self, ops: Builder, hidden_state: Value) -> Value:
        return self.model.leave(ops, ops.take_rows(hidden_state, ops.rows), self._given(ops, {}, ()))

    def _given(self, ops: Builder, weights: Specs, states: tuple[Value, ...]) -> Given:
        return Given(
            _DeclaredWeights(self.globals, ops.weight), ops.positions, {}, _DeclaredWeights(weights, ops.weight), states
        )

    def _keep_apart(self, keys: Keys) -> tuple[str, ...]:
        """Take out what is no part of the text model, and put the parts of fused tensors in their place."""
        n_read, n_layers = self.n_layers, keys.integer("block_count")
        tensors, skipped = {}, []
        extra = tuple(f"blk.{i}." for i in range(n_read, n_layers))
        for name, info in self.gguf.tensors.items():
            if belongs_to_text(name) and not name.startswith(extra):
                tensors[name] = info
            else:
                skipped.append(name)
        try:
            self.gguf = self.gguf.with_header(self.gguf.metadata, with_parts(tensors, self.model))
        except ModelFileError as error:
            raise ModelFileError(f"{self.gguf.path}: {error}", **error.facts) from None
        return tuple(skipped)

    def _weights(self, prefix: str, names: Mapping[str, bool]) -> dict[str, WeightSpec]:
        found = {}
        for name, required in names.items():
            full_name = f"{prefix}{name}" if name.endswith(".bias") else f"{prefix}{name}.weight"
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
        table = self.globals.get("position_embd")
        if table and table.shape[0] < self.context_length:
            found = f"has {table.shape[0]} rows, expected one for each of {self.context_length} positions"
            raise ModelFileError(f"{self.gguf.path}: tensor {table.name!r} {found}", tensor=table.name)
        read = {weight.name for weight in (*program.weights, *self.globals.values())}
        for name in self.gguf.tensors:
            if name not in read:
                raise ModelFileError(
                    f"{self.gguf.path}: tensor {name!r} is not supported in this architecture", tensor=name
                )

    def _weight(self, name: str) -> WeightSpec:
        tensor = self.gguf.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.gguf.path}: tensor {name!r} is missing", tensor=name)
        return WeightSpec(name, tensor.type.id, tensor.shape)


class _DeclaredWeights(Mapping[str, Value]):
    """Weights by name, each of them declared when it is asked for: a program holds what its ops read."""

    def __init__(self, specs: Specs, declare: Callable[[WeightSpec], Value]) -> None:
        self._specs = specs
        self._declare = declare

    def __getitem__(self, name: str) -> Value:
        return self._declare(self._specs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
