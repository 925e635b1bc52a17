"""Rotary position embedding of the first ``rotary_dim`` values of every head.

    angle[t, i] = positions[t] * theta^(-2i / rotary_dim) * (r[i] scale + 1 - r[i]) / factors[i]     i < rotary_dim / 2
    r[i]        = (i - ramp_start) / (ramp_end - ramp_start), at least 0 and at most 1
    (a, b)     -> (a cos - b sin, a sin + b cos) * magnitude

``pairing`` says which values turn together: "interleaved" (2i, 2i + 1), as llama files are stored, or "halves"
(i, i + rotary_dim / 2). ``factors`` are the frequency factors of a file's ``rope_freqs.weight`` or
``rope_factors_long.weight`` (all 1 where there are none). ``scale`` is the inverse of the factor by which a context is
stretched: of all pairs where both ends of the ramp are -1 (linear scaling); YaRN leaves those before ``ramp_start``,
whose waves are short, as they are, and multiplies cosines and sines with ``magnitude``. Angles are taken in float64: at
position 100 000 a float32 angle is off by 4e-3. Values from ``rotary_dim`` on are copied as they are.

Source: Su et al. 2021, "RoFormer", eq. 34; Peng et al. 2023, "YaRN".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ollama_zmq.ops.spec import Attr, Input, Op, Output, Size, Weight

PAIRINGS = ("interleaved", "halves")
MIN_RAMP = 1e-3  # of the difference, as everybody has it
_ATTRS = {
    "n_heads": Attr(int, 1, 1024, symbol="H"),
    "head_dim": Attr(int, 1, 1024, symbol="E"),
    "rotary_dim": Attr(int, 2, 1024),
    "theta": Attr(float, 1.0, 1e12),
    "scale": Attr(float, 1e-6, 1e6),
    "ramp_start": Attr(float, -1.0, 1024.0),
    "ramp_end": Attr(float, -1.0, 1024.0),
    "magnitude": Attr(float, 1e-3, 1e3),
    "pairing": Attr(str, choices=PAIRINGS),
}


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    rotary_dim, head_dim = attrs["rotary_dim"], attrs["head_dim"]
    if rotary_dim % 2 or rotary_dim > head_dim:
        return f"rotary_dim={rotary_dim} is not an even number up to head_dim={head_dim}"
    if sizes.get("P", rotary_dim // 2) != rotary_dim // 2:
        return f"factors: P={sizes['P']}, expected rotary_dim/2={rotary_dim // 2}"
    return ""


def scales(attrs: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Return float64 [rotary_dim / 2]: by which each pair's angle is stretched."""
    start, end = attrs["ramp_start"], attrs["ramp_end"]
    ramp = np.clip((np.arange(attrs["rotary_dim"] // 2) - start) / max(MIN_RAMP, end - start), 0.0, 1.0)
    stretched: npt.NDArray[np.float64] = ramp * attrs["scale"] + (1.0 - ramp)
    return stretched


ROPE = Op(
    name="rope",
    args={
        "x": Input("T H*E"),
        "positions": Input("T", "int32"),
        "factors": Weight("P", optional=True),
        "out": Output("T H*E"),
    },
    attrs=_ATTRS,
    rtol=2e-6,
    atol=2e-6,
    by_row=True,
    in_place=("x",),
    rule=_rule,
)
