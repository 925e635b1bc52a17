"""Turn each pair of values by an angle that grows with the position: multiplication by e^(i angle)."""

import numpy as np


def rope(
    x,
    positions,
    factors=None,
    *,
    n_heads,
    head_dim,
    rotary_dim,
    theta,
    scale,
    ramp_start=-1.0,
    ramp_end=-1.0,
    magnitude=1.0,
    pairing,
):
    x = x.astype(np.float64).reshape(len(x), n_heads, head_dim)
    out = x.copy()
    for i in range(rotary_dim // 2):
        first, second = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + rotary_dim // 2)
        stretched = min(1.0, max(0.0, (i - ramp_start) / max(0.001, ramp_end - ramp_start)))
        frequency = theta ** (-2 * i / rotary_dim) * (stretched * scale + 1 - stretched)
        if factors is not None:
            frequency /= float(factors[i])
        pair = x[:, :, first] + 1j * x[:, :, second]
        turned = pair * magnitude * np.exp(1j * frequency * positions.astype(np.float64))[:, None]
        out[:, :, first], out[:, :, second] = turned.real, turned.imag
    return out.reshape(len(x), n_heads * head_dim)
