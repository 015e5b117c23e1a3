"""minigan: generative adversarial networks on a small automatic differentiation engine of their own."""

from minigan import analysis, data, losses, metrics, models, nn, ops, optim, penalties
from minigan.check import check_grad
from minigan.checkpoint import load, save
from minigan.errors import (
    CheckpointError,
    CollapseError,
    ConfigError,
    DataError,
    DeviceError,
    DTypeError,
    ExtraError,
    GraphError,
    MiniganError,
    NonFiniteError,
    ShapeError,
)
from minigan.game import Game
from minigan.kernels.machine import set_threads
from minigan.program import compile
from minigan.tape import grad, hvp, jvp, no_grad, vjp
from minigan.tensor import Tensor, asarray, tensor
from minigan.train import GAN

__version__ = "0.1.0"
__all__ = [
    "GAN",
    "CheckpointError",
    "CollapseError",
    "ConfigError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "ExtraError",
    "Game",
    "GraphError",
    "MiniganError",
    "NonFiniteError",
    "ShapeError",
    "Tensor",
    "__version__",
    "analysis",
    "asarray",
    "check_grad",
    "compile",
    "data",
    "grad",
    "hvp",
    "jvp",
    "load",
    "losses",
    "metrics",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "penalties",
    "save",
    "set_threads",
    "tensor",
    "vjp",
]
