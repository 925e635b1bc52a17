"""A model cut into stages: which worker runs which program, made of which bytes of the file.

Embedding, output head and sampling stay on the main host, so text and logits never leave it and the last hop carries
one hidden state instead of a vocabulary of logits. The broker itself looks up embeddings; the head is a program of the
local device. Without workers everything is one program.

    worker layers 0..14 -> worker layers 15..29 -> local head

The number of the model stands in the name of its programs, so that two models with the same ops have programs of their
own on a worker that holds both; and the attempt to load it, so that an answer to an earlier one is not taken for one of
now.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from ollama_zmq.cluster.cost_model import CostEstimate, cost_of, costs_of, matrices_of
from ollama_zmq.cluster.placement import Demand, Placement, Policy
from ollama_zmq.cluster.state import StageState
from ollama_zmq.engine.requests import Microbatch
from ollama_zmq.models.network import Network
from ollama_zmq.ops.program import Program, program_id, row_floats, streamed_shares, verify
from ollama_zmq.ops.state import PAGE_SLOTS
from ollama_zmq.wire.messages import Define, Run, WeightSource

LOCAL = "local"
NO_MODEL = 0
SCORED_ROWS = 64  # 512 rows of a 128k vocabulary would be 268 MB of scratch memory


class Missing(Enum):
    """What becomes of a load when a worker of the list is missing. The values are those of ``OLLAMA_RPC_MISSING``."""

    USE_REST = "use-rest"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What to load, and where it may go.

    Attributes:
        model: number of the loaded model; never used twice by one broker, 0 by none.
        replaces: number of the model that goes when the plan of this one stands.
        idle, busy: models that may be asked to go before it is loaded, least recently used first.
        blob: identity of the model file, "sha256-<hex>" for a blob of the store.
        addresses: "host:port" of the workers, in order of preference.
        num_ctx: slots of one sequence.
        num_parallel: sequences at once, with pages for a whole context each; 0 for as many as ``contexts`` contexts'
            worth of pages hold.
        max_tokens: the most tokens of one pass.
        num_thread: the most threads of the local device; 0 for all it has.
        missing: what to do when one of *addresses* is not there.
        foreign: those of *addresses* that the operator of the server did not name: why they are not there is no
            business of who named them.
    """

    model: int
    name: str
    network: Network
    blob: str
    addresses: tuple[str, ...]
    num_ctx: int
    num_parallel: int
    max_tokens: int
    policy: Policy = Policy.THROUGHPUT
    replaces: int = NO_MODEL
    idle: tuple[int, ...] = ()
    busy: tuple[int, ...] = ()
    num_thread: int = 0
    contexts: int = 1
    missing: Missing = Missing.USE_REST
    foreign: frozenset[str] = frozenset()

    @property
    def max_rows(self) -> int:
        """The most rows of logits of one pass: scores come in chunks, generation needs one a sequence."""
        return min(self.max_tokens, max(self.num_parallel, SCORED_ROWS))

    @property
    def kv_pages(self) -> int:
        """Pages in the KV cache of every layer."""
        return -(-self.num_ctx // PAGE_SLOTS) * (self.num_parallel or self.contexts)

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the KV cache of one layer."""
        return self.network.kv_nbytes(self.kv_pages * PAGE_SLOTS)

    @property
    def context(self) -> int:
        """Slots that a token attends to, as speeds are predicted: a conversation half way through."""
        return self.num_ctx // 2

    @property
    def max_sequences(self) -> int:
        """The most sequences that hold pages at once: each may want a row of logits in one pass."""
        return self.num_parallel or self.max_rows


class Part(Enum):
    """What of a model a stage has. The values are shown to people."""

    LAYERS = "layers"
    HEAD = "head"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Stage:
    """A program on a worker.

    Attributes:
        is_last: it has the model's last layer.
        width: numbers in a row of its output: of a hidden state, or of logits.
        need: memory it takes on its worker, by the plan.
        cost: what one token asks of it.
    """

    address: str
    part: Part
    layers: range
    is_last: bool
    width: int
    define: Define
    need: int
    cost: CostEstimate

    @property
    def program(self) -> bytes:
        """The id of its program."""
        return self.define.program

    @property
    def takes_wanted(self) -> bool:
        """Whether it is given the rows that are wanted, and nothing else."""
        return self.part is Part.HEAD

    @property
    def gives_wanted(self) -> bool:
        """Whether its output is the rows that are wanted: nothing behind the last layer needs the others."""
        return self.part is not Part.LAYERS or self.is_last

    def rows_in(self, microbatch: Microbatch) -> int:
        """How many rows of *microbatch* it is given."""
        return len(microbatch.rows if self.takes_wanted else microbatch.token_ids)

    def rows_out(self, microbatch: Microbatch) -> int:
        """How many rows its output has."""
        return len(microbatch.rows if self.gives_wanted else microbatch.token_ids)

    def run_message(self, number: int, microbatch: Microbatch) -> Run:
        """The message that runs it on *microbatch*, which is *number* on its way. To a head each row is a sequence."""
        R = len(microbatch.rows)
        return Run(
            program=self.program,
            microbatch=number,
            lengths=(1,) * R if self.takes_wanted else microbatch.lengths,
            positions=(0,) * R if self.takes_wanted else microbatch.positions,
            pages=microbatch.pages if self.define.kv_pages else (),
            rows=tuple(range(R)) if self.takes_wanted else microbatch.rows if self.gives_wanted else (),
        )

    @property
    def state(self) -> StageState:
        """This stage for ``/api/cluster``, without latencies."""
        first, last = (self.layers.start, self.layers.stop - 1) if self.layers else (-1, -1)
        return StageState(self.address, self.part.value, first, last)


def demand_of(order: LoadOrder) -> Demand:
    """Return what the planner must know about a model."""
    network = order.network
    one_layer, layers = verify(network.layers_program(range(1))), network.layers_program(range(network.n_layers))
    shares, nbytes = streamed_shares(layers), {name: tensor.nbytes for name, tensor in network.gguf.tensors.items()}
    head = network.head_program()
    return Demand(
        layer_nbytes=tuple(network.layer_nbytes(i) for i in range(network.n_layers)),
        kv_nbytes=order.kv_nbytes,
        scratch_nbytes=4 * order.max_tokens * row_floats(one_layer),
        head_nbytes=network.head_nbytes(),
        layer_costs=costs_of(layers, [matrices_of(w.values(), shares, nbytes) for w in network.layers], order.context),
        head_cost=cost_of(head, matrices_of(head.weights, streamed_shares(head), nbytes), order.context),
        hidden_size=network.hidden_size,
        num_ctx=order.num_ctx,
        num_parallel=order.num_parallel,
    )


def stages_of(order: LoadOrder, demand: Demand, placement: Placement, restarts: int = 0) -> tuple[Stage, ...]:
    """Return the stages of *placement* in pipeline order, for a load that has begun anew so many times."""
    network, head = order.network, demand.head_need
    number = f"{order.model}.{restarts}" if restarts else f"{order.model}"
    if all(address == LOCAL for address, _ in placement.stages):
        layers = range(network.n_layers)
        need = demand.need(layers) + head
        return (_stage(order, number, LOCAL, Part.WHOLE, layers, network.whole_program(), need),)
    stages = [
        _stage(order, number, address, Part.LAYERS, layers, network.layers_program(layers), demand.need(layers))
        for address, layers in placement.stages
    ]
    return (*stages, _stage(order, number, LOCAL, Part.HEAD, range(0), network.head_program(), head))


def _stage(
    order: LoadOrder, number: str, address: str, part: Part, layers: range, program: Program, need: int
) -> Stage:
    tensors = order.network.gguf.tensors
    sources = tuple(
        WeightSource(spec.name, order.blob, tensors[spec.name].offset, tensors[spec.name].nbytes)
        for spec in program.weights
    )
    code = msgspec.structs.replace(program, name=f"{program.name} of {order.name[:80]} #{number}").to_bytes()
    kv_pages = order.kv_pages if program.states else 0
    threads = order.num_thread if address == LOCAL else 0
    define = Define(program_id(code), code, sources, kv_pages, order.max_tokens, order.max_rows, threads)
    shares = {name: s for name, s in streamed_shares(program).items() if not _only_embedded(order, name)}
    matrices = matrices_of(program.weights, shares, {name: tensors[name].nbytes for name in shares})
    return Stage(
        address,
        part,
        layers,
        layers.stop == order.network.n_layers,
        order.network.hidden_size if part is Part.LAYERS else order.network.vocab_size,
        define,
        need,
        cost_of(program, matrices, order.context),
    )


def _only_embedded(order: LoadOrder, name: str) -> bool:
    return name == order.network.embedding.name and name != order.network.output.name
