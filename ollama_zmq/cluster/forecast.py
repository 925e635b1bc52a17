"""How fast a plan will be, from what workers and links were measured at when they joined.

A stage costs what the engine's cost model (:mod:`ollama_zmq.engine.pacing`) expects before it has measured it: its work
and its way (:mod:`ollama_zmq.cluster.work`). Decoding is one sequence, one token at a time, in half of the context that
was asked for. Prefill is a prompt of 512 tokens, in the chunks that the engine would choose, following each other
through the stages.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_zmq.cluster.stages import Stage
from ollama_zmq.cluster.state import TokenSpeeds
from ollama_zmq.cluster.work import PROMPT_TOKENS, Site
from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import NOTHING, Pacing, StageCost

TURN = Line(2e-4, 0.0)  # around the kernels, read from answers that follow each other


def stage_cost(stage: Stage, site: Site, hidden_size: int) -> StageCost:
    """What *stage* is expected to cost on *site*."""
    work, way = site.work(stage.work), site.way(hidden_size)
    return StageCost(stage.address, work, way, stage.part == "head", site.share, TURN if site.is_remote else NOTHING)


def forecast(costs: Sequence[StageCost], max_tokens: int) -> TokenSpeeds:
    """Tokens per second of one stream through stages of *costs*."""
    pacing = Pacing(costs, max_tokens=max_tokens)
    chunk = pacing.plan(0, PROMPT_TOKENS).chunk
    return TokenSpeeds(1 / pacing.loop_s(1, 1), max(PROMPT_TOKENS, chunk) / pacing.prefill_s(PROMPT_TOKENS, chunk))


def token_us(cost: StageCost) -> float:
    """Microseconds of one decoded token on a stage, the way included."""
    return (cost.work.seconds(1) + cost.way.seconds(1)) * 1e6
