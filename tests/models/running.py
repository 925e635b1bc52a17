"""Programs of a model file, loaded on a device: what the broker and its workers do, without the wire."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from ollama_zmq.devices.base import Step
from ollama_zmq.engine.embedding import Embedding
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.ops.program import verify
from ollama_zmq.ops.state import PAGE_SLOTS

KV_PAGES = 4


class Stages:
    """The stages of one model on one device; each has its own KV cache, all use the same page numbers."""

    def __init__(self, network, executables) -> None:
        self.network = network
        self.executables = executables
        self.embedding = Embedding(network.gguf)

    def first_input(self, token_ids):
        """What the first stage is given: token ids if it looks rows up itself, as the broker looks them up if not."""
        takes_ids = self.executables[0].verified.program.inputs[0].name == "token_ids"
        return token_ids if takes_ids else self.embedding.rows(token_ids)

    def run(self, token_ids, start=0, pages=(2, 0, 3), rows=None):
        """Logits [R, V] of *token_ids* at positions from *start* on, all rows if *rows* is None."""
        value = np.asarray(token_ids, np.int32)
        wanted = range(len(value)) if rows is None else rows
        step = Step.of([len(value)], [start], [pages], wanted)
        return np.array(self.run_step(value, step))

    def run_step(self, token_ids, step):
        value, wanted = self.first_input(token_ids), len(step.rows)
        for executable in self.executables:
            if executable.verified.program.name == "head":
                step = Step.of([1] * wanted, [0] * wanted, (), range(wanted))
            value = np.array(executable.run(value, step))
        return value


def cut(network, *cuts):
    """The programs of the model: layers cut before each of *cuts*, and the head; the broker looks rows up."""
    borders = [0, *cuts, network.n_layers]
    stages = [network.layers_program(range(a, b)) for a, b in pairwise(borders)]
    return [*stages, network.head_program()]


@contextmanager
def running(
    device,
    path: Path,
    programs=lambda network: [network.whole_program()],
    *,
    max_tokens=3 * PAGE_SLOTS,
    kv_type="f16",
):
    """The model in the file at *path*, as the programs that *programs* makes of its network."""
    with (
        open_gguf(path) as gguf,
        loaded(device, Network(gguf, kv_type), programs, max_tokens=max_tokens) as stages,
    ):
        yield stages


@contextmanager
def loaded(device, network, programs=lambda network: [network.whole_program()], *, max_tokens=3 * PAGE_SLOTS):
    """A model whose file is open, as the programs that *programs* makes of it."""
    with ExitStack() as stack:
        weights, executables = {}, []
        for program in programs(network):
            verified = verify(program)
            for spec in program.weights:
                if spec.name not in weights:
                    weights[spec.name] = device.load_weight(spec, network.gguf.data(spec.name))
                    stack.callback(weights[spec.name].close)
            mine = {spec.name: weights[spec.name] for spec in program.weights}
            executables.append(device.compile(verified, mine, kv_pages=KV_PAGES, max_tokens=max_tokens))
            stack.callback(executables[-1].close)
        yield Stages(network, executables)
