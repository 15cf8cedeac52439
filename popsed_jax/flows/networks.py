"""What several networks are built of."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float


def residual(x: Float[Array, "*batch input"], hidden: int, num_blocks: int) -> Float[Array, "*batch hidden"]:
    """A dense layer and residual blocks, normalised at their entrance; inside a compact module, whose layers these become."""
    x = nn.Dense(hidden)(x)
    for _ in range(num_blocks):
        x = x + nn.Dense(hidden)(nn.gelu(nn.LayerNorm()(x)))
    return x
