"""How fast a plan will be, from what workers and links were measured at when they joined.

A stage costs what the engine's cost model (:mod:`ollama_zmq.engine.pacing`) expects before it has measured it:

    seconds of T rows = bytes streamed / decode_bytes_per_s + T * multiply-adds / prefill_macs_per_s
    on the way        = round trip + T * bytes of a hidden state, there and back / bandwidth

Decoding is one sequence, one token at a time. Prefill is a prompt of 512 tokens, in the chunks that the engine would
choose, following each other through the stages. The KV cache is not counted: it is empty when a text begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_zmq.cluster.placement import Site
from ollama_zmq.cluster.stages import LOCAL, Stage
from ollama_zmq.cluster.state import Speeds
from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import Pacing, StageCost

PROMPT_TOKENS = 512


def stage_cost(stage: Stage, site: Site, hidden_size: int) -> StageCost:
    """What *stage* is expected to cost on *site*."""
    work = Line(stage.nbytes / max(site.decode_bytes_per_s, 1e6), stage.macs / max(site.prefill_macs_per_s, 1e6))
    moved_s = 0.0 if site.address == LOCAL else 8.0 * hidden_size / max(site.bandwidth_bytes_per_s, 1e5)
    return StageCost(stage.address, work, Line(site.rtt_s, moved_s), stage.part == "head", site.share)


def forecast(costs: Sequence[StageCost], max_tokens: int) -> Speeds:
    """Tokens per second of one stream through stages of *costs*."""
    pacing = Pacing(costs, max_tokens=max_tokens)
    chunk = pacing.plan(0, PROMPT_TOKENS).chunk
    return Speeds(1 / pacing.loop_s(1, 1), max(PROMPT_TOKENS, chunk) / pacing.prefill_s(PROMPT_TOKENS, chunk))


def token_us(cost: StageCost) -> float:
    """Microseconds of one decoded token on a stage, the way included."""
    return (cost.work.seconds(1) + cost.way.seconds(1)) * 1e6
