"""Fused losses on logits."""

import math
from typing import Any

from minigan.kernels import formula as fm
from minigan.linear import unbroadcast
from minigan.ops.elementwise import sigmoid, softplus
from minigan.pointwise import pointwise
from minigan.tape import Input, apply
from minigan.tensor import Tensor, TensorLike, pair, where


def _reference(x: Any, z: Any) -> Any:
    return where(z == 0, 0.0, z * softplus(-x)) + where(z == 1, 0.0, (1.0 - z) * softplus(x))


@pointwise(
    lambda gy, y, x, z: (
        # Written with σ(-x), not as σ(x) - z, which is all rounding error where the network is sure and right.
        lambda: unbroadcast(gy * ((1.0 - z) * sigmoid(x) - z * sigmoid(-x)), x.shape),
        lambda: unbroadcast(-gy * x, z.shape),
    ),
    reference=_reference,
    low=-4.0,
    high=4.0,
    draws={"z": Input((), low=0.05, high=0.95, edges=(0.0, -0.0, 1e-40, 0.1, 0.9, 1.0, math.nan))},
)
def _sigmoid_cross_entropy(x: Any, z: Any) -> Any:
    tail = fm.log1p(fm.exp(-fm.absolute(x)))
    certain = fm.where(z == 0, 0.0, z * (fm.maximum(-x, 0.0) + tail))
    return certain + fm.where(z == 1, 0.0, (1.0 - z) * (fm.maximum(x, 0.0) + tail))


def sigmoid_cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """-z log σ(x) - (1 - z) log(1 - σ(x)) for logits x and labels z in [0, 1], element by element, broadcast.

    Computed as z softplus(-x) + (1 - z) softplus(x), where a weight of 0 gives 0, so that hard labels are within 4 ulp
    and soft ones within 8 of the exact value, also at infinite logits, and only NaN gives NaN. The derivative
    is (1 - z) σ(x) - z σ(-x), within [-1, 1].

    Logits are what a discriminator gives *before* any sigmoid: probabilities in their place are a classic mistake,
    because σ of a probability lies between 0.5 and 0.73 and the loss can then never become small.

    >>> import minigan as mg
    >>> mg.ops.sigmoid_cross_entropy(mg.tensor([-1e4, 0.0, 1e4]), 1.0).numpy().round(4)
    array([1.000e+04, 6.931e-01, 0.000e+00], dtype=float32)
    """
    return apply(_sigmoid_cross_entropy, *pair(logits, labels))  # type: ignore[no-any-return]
