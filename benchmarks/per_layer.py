"""Where does the time of one decoded token go? Per stage: compute, wire, queue. Per layer: compute.

    per_layer.py --model F.gguf                               this machine alone
    per_layer.py --model F.gguf --rpc a:50052,b:50052         workers that run already
    per_layer.py --model F.gguf --workers 2 --threads 1       two workers started here
    per_layer.py ... --json OUT.json --plot OUT.png

Stages are measured while a text is generated: each worker reports the time in its kernels and the time a message waited
for them, and what is left of the round trip is the wire. What a token takes beyond the kernels of all stages is spent
around them. A layer of a stage is its compute time divided by its layers.

Beside it stands a direct measurement, on this machine, with nothing on the wire: every layer as a program of its own,
run in turn for each token, so that each finds its weights in memory and not in the cache of the run before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Session,
    check_matplotlib,
    generate,
    loaded_broker,
    median,
    parser,
    print_table,
    random_prompt,
    resolve_model,
    run_main,
    worker_addresses,
    write_json,
)

from ollama_zmq.cluster.state import StageState
from ollama_zmq.devices.base import Budget, Device, DeviceWeight, Executable, Step
from ollama_zmq.devices.registry import default_budget, open_device
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.ops.program import verify
from ollama_zmq.ops.state import PAGE_SLOTS

PARTS = ("compute", "wire", "queue")


def main() -> None:
    given = arguments()
    stages, token_us = measure_stages(given)
    layers = measure_layers(given)
    print_stages(stages)
    kernels_us = sum(stage.latency.compute.p50_us for stage in stages if stage.latency is not None)
    print(f"a token takes {token_us:.0f} us, {token_us - kernels_us:.0f} of them around the kernels")
    print()
    print_layers(layers)
    records = [stage_record(stage) for stage in stages]
    records.append({"kind": "token", "p50_us": token_us, "around_kernels_us": token_us - kernels_us})
    records += [{"kind": "layer", "layer": i, "p50_us": p50, "p95_us": p95} for i, (p50, p95) in enumerate(layers)]
    write_json(given.json, [{"model": given.model, "threads": given.threads, **record} for record in records])
    if given.plot:
        plot(given.plot, Path(given.model).name, stages, layers)


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--prompt", type=int, default=64, help="tokens in the context before the first step (default 64)")
    made.add_argument("--decode", type=int, default=64, help="steps to measure (default 64)")
    made.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the result; needs matplotlib")
    given = made.parse_args()
    if given.plot:
        check_matplotlib()
    return given


def measure_stages(given: argparse.Namespace) -> tuple[tuple[StageState, ...], float]:
    """Generate texts and return what each stage took, and the microseconds of a token of the median text."""
    context = given.prompt + given.decode + 64
    with ExitStack() as stack:
        workers = stack.enter_context(worker_addresses(given.rpc, given.workers, given.threads))
        loaded = loaded_broker(given.model, workers, threads=given.threads, num_ctx=context)
        session = stack.enter_context(loaded)
        token_us = median(decode_steps(session, session.model.network.vocab_size, given.prompt, given.decode))
        (state,) = session.broker.cluster().models
        for note in state.notes:
            print(f"note: {note}")
        return state.stages, token_us


def decode_steps(session: Session, vocab_size: int, n_prompt: int, n_steps: int) -> list[float]:
    """Decode at least *n_steps* tokens after prompts of *n_prompt* and return the microseconds of a token of each text.

    A text that ends early is followed by another.
    """
    found: list[float] = []
    while n_steps > 0:
        finished = generate(session, random_prompt(n_prompt, vocab_size, len(found)), n_steps + 1)
        steps = max(finished.output_tokens - 1, 1)
        n_steps -= steps
        found.append(1e6 * finished.decode_s / steps)
    return found


@dataclass(slots=True)
class SingleLayer:
    """One layer as a program of its own, with the hidden state that enters it."""

    executable: Executable
    weights: list[DeviceWeight]

    def close(self) -> None:
        """Free the program, then its weights."""
        self.executable.close()
        for weight in self.weights:
            weight.close()


def measure_layers(given: argparse.Namespace) -> list[tuple[float, float]]:
    """Return p50 and p95 of every layer on this machine's own device, in microseconds."""
    path, _ = resolve_model(given.model)
    device = open_device("cpu", threads=given.threads or None, budget=Budget(default_budget()))
    with open_gguf(path) as gguf:
        network = Network(gguf)
        pages = -(-(given.prompt + given.decode) // PAGE_SLOTS)
        layers = [single_layer(network, gguf, device, i, pages, given.prompt) for i in range(network.n_layers)]
        try:
            times = run_layers(layers, network.hidden_size, given.prompt, given.decode, pages)
        finally:
            for layer in layers:
                layer.close()
            device.close()
    return [(float(np.percentile(t, 50)), float(np.percentile(t, 95))) for t in times]


def single_layer(
    network: Network, gguf: GgufFile, device: Device, i: int, kv_pages: int, max_tokens: int
) -> SingleLayer:
    """Make layer *i* ready to run by itself."""
    verified = verify(network.layers_program(range(i, i + 1)))
    weights = {spec.name: device.load_weight(spec, gguf.data(spec.name)) for spec in verified.program.weights}
    executable = device.compile(verified, weights, kv_pages=kv_pages, max_tokens=max(max_tokens, 1))
    return SingleLayer(executable, list(weights.values()))


def run_layers(
    layers: Sequence[SingleLayer], D: int, n_prompt: int, n_steps: int, n_pages: int
) -> np.ndarray[Any, Any]:
    """Return float64 [L, steps], the microseconds of each layer at each step after a prompt of *n_prompt* tokens."""
    pages = [np.arange(n_pages, dtype=np.int32)]
    times = np.zeros((len(layers), n_steps))
    prompt = np.random.default_rng(0).normal(size=(n_prompt, D)).astype(np.float32)
    if n_prompt:
        pass_through(layers, prompt, Step.of([n_prompt], [0], pages))
    for j in range(n_steps):
        token = np.random.default_rng(j + 1).normal(size=(1, D)).astype(np.float32)
        times[:, j] = pass_through(layers, token, Step.of([1], [n_prompt + j], pages))
    return times


def pass_through(layers: Sequence[SingleLayer], hidden_state: np.ndarray[Any, Any], step: Step) -> list[float]:
    """Send *hidden_state* through all layers and return the microseconds of each."""
    times = []
    for layer in layers:
        started = time.perf_counter()
        hidden_state = layer.executable.run(hidden_state, step)
        times.append(1e6 * (time.perf_counter() - started))
    return times


def n_layers(stage: StageState) -> int:
    """How many layers *stage* has; 0 for the embedding or the head alone."""
    return stage.last_layer - stage.first_layer + 1 if stage.first_layer >= 0 else 0


def layers_of(stage: StageState) -> str:
    """``3-17``, or nothing."""
    return f"{stage.first_layer}-{stage.last_layer}" if n_layers(stage) else ""


def stage_record(stage: StageState) -> dict[str, Any]:
    """*stage* as a record of the JSON file."""
    record: dict[str, Any] = {
        "kind": "stage",
        "worker": stage.worker,
        "part": stage.part,
        "first_layer": stage.first_layer,
        "last_layer": stage.last_layer,
    }
    if stage.latency is not None:
        record["steps"] = stage.latency.steps
        for part in PARTS:
            found = getattr(stage.latency, part)
            record |= {f"{part}_p50_us": found.p50_us, f"{part}_p95_us": found.p95_us}
        if n_layers(stage):
            record["compute_per_layer_p50_us"] = stage.latency.compute.p50_us / n_layers(stage)
            record["compute_per_layer_p95_us"] = stage.latency.compute.p95_us / n_layers(stage)
    return record


def print_stages(stages: Sequence[StageState]) -> None:
    """One line per stage, microseconds, p50 and p95."""
    rows = []
    for stage in stages:
        record = stage_record(stage)
        figures = [record.get(f"{part}_{p}_us", "-") for part in (*PARTS, "compute_per_layer") for p in ("p50", "p95")]
        rows.append([f"{stage.worker} {stage.part}", layers_of(stage) or "-", *figures])
    header = [f"{part} {p}" for part in (*PARTS, "a layer") for p in ("p50", "p95")]
    print("stages while decoding, us")
    print_table(["stage", "layers", *header], rows)


def print_layers(layers: Sequence[tuple[float, float]]) -> None:
    """One line per layer, and the sum of the medians."""
    print("layers run one by one on this machine, us")
    rows = [[i, p50, p95] for i, (p50, p95) in enumerate(layers)]
    print_table(["layer", "p50", "p95"], [*rows, ["all", sum(p50 for p50, _ in layers), ""]])


def plot(out: Path, title: str, stages: Sequence[StageState], layers: Sequence[tuple[float, float]]) -> None:
    """Draw stages as stacked bars and layers as bars with their p95 on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    measured = [stage for stage in stages if stage.latency is not None]
    names = [f"{stage.worker}\n{layers_of(stage) or stage.part}" for stage in measured]
    base = np.zeros(len(measured))
    for part in PARTS:
        heights = np.array([getattr(stage.latency, part).p50_us for stage in measured])
        left.bar(range(len(measured)), heights, bottom=base, label=part)
        base = base + heights
    left.set_xticks(range(len(measured)), names, rotation=20, fontsize=8)
    left.set(title="stages, p50 of a decode step", ylabel="us")
    left.legend()
    p50, p95 = np.array(layers).T
    right.bar(range(len(layers)), p50, yerr=[np.zeros(len(layers)), np.maximum(p95 - p50, 0)], label="p50, line to p95")
    right.set(title="layers one by one on this machine", xlabel="layer", ylabel="us")
    right.legend(loc="lower right")
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    run_main(main)
