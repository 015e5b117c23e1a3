"""Networks, optimisers and penalties as plain values, and back: what a file of settings can say of them.

Names are looked up in the tables below and nowhere else: no name in a file is ever imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from minigan import models, optim, penalties
from minigan.errors import ConfigError
from minigan.nn import Module, init as initializers
from minigan.optim import Curve, Optimizer
from minigan.penalties import Penalty

_MODELS: dict[str, Callable[..., Module]] = {
    "mlp_generator": models.mlp_generator,
    "mlp_discriminator": models.mlp_discriminator,
}
_PENALTIES: dict[str, Callable[..., Penalty]] = {
    f.__name__: f for f in (penalties.r1, penalties.r2, penalties.wgan_gp, penalties.dragan)
}
_OPTIMIZERS: dict[str, type[Optimizer]] = {c.__name__: c for c in (optim.SGD, optim.RMSProp, optim.Adam)}
_SCHEDULES: dict[str, Callable[..., Any]] = {
    name: lambda name=name, **settings: Curve(name, **settings) for name in ("constant", "linear", "cosine")
}
_INITIALIZERS: dict[str, Any] = {
    f.__name__: f
    for f in (
        initializers.glorot_uniform,
        initializers.glorot_normal,
        initializers.he_uniform,
        initializers.he_normal,
        initializers.normal,
        initializers.orthogonal,
        initializers.zeros,
    )
}


def named(table: Mapping[str, Any], what: str, name: Any) -> Any:
    """The entry of that name; `ConfigError` lists the names there are."""
    if name not in table:
        raise ConfigError(f"{what} {name!r} does not exist; there are {', '.join(table)}")
    return table[name]


def describe_network(network: Module) -> dict[str, Any]:
    """The network's function in `minigan.models` and its arguments, or its `repr` if it is one of a user's own."""
    known = isinstance(network, (models.Generator, models.Discriminator)) and network.config
    return known or {"model": "custom", "repr": repr(network)}


def build_network(config: Mapping[str, Any]) -> Module:
    """A new network from what `describe_network` gave."""
    settings = {k: v for k, v in config.items() if k != "model"}
    function = named(_MODELS, "model", config["model"])
    if function is models.mlp_generator:
        settings.setdefault("output", None)
    settings["init"] = named(_INITIALIZERS, "initialiser", settings["init"])
    return function(**settings)  # type: ignore[no-any-return]


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's class and settings, with its schedule as a table of its own."""
    settings = {f.name: getattr(optimizer, f.name) for f in fields(optimizer)}
    if isinstance(optimizer.lr, Curve):
        settings["lr"] = {f.name: getattr(optimizer.lr, f.name) for f in fields(optimizer.lr)}
    elif callable(optimizer.lr):
        settings["lr"] = {"name": "custom", "repr": repr(optimizer.lr)}
    return {"name": type(optimizer).__name__, **settings}


def build_optimizer(config: Mapping[str, Any]) -> Optimizer:
    """An optimiser from what `describe_optimizer` gave."""
    settings = {k: v for k, v in config.items() if k != "name"}
    if isinstance(settings["lr"], dict):
        lr = dict(settings["lr"])
        settings["lr"] = named(_SCHEDULES, "schedule", lr.pop("name"))(**lr)
    return named(_OPTIMIZERS, "optimizer", config["name"])(**settings)  # type: ignore[no-any-return]


def describe_penalty(penalty: Penalty) -> dict[str, Any]:
    """The penalty's function and its numbers."""
    return {"name": penalty.name, "weight": penalty.weight, **penalty.settings}


def build_penalty(config: Mapping[str, Any]) -> Penalty:
    """A penalty from what `describe_penalty` gave."""
    settings = {k: v for k, v in config.items() if k not in ("name", "weight")}
    return named(_PENALTIES, "penalty", config["name"])(config["weight"], **settings)  # type: ignore[no-any-return]


def plain(x: Any) -> Any:
    """Settings as TOML and JSON can write them: NumPy's numbers as Python's, sequences as lists, no `None`."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items() if v is not None}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x.tolist() if isinstance(x, (np.generic, np.ndarray)) else x
