"""Configurations by name, and those of users' own files: tables as in the `config.toml` of a run."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from minigan import settings
from minigan.errors import ConfigError

PLAYERS = ("generator", "discriminator")
SOURCE = ("source", "data_dir", "size", "channels")  # of what is known of data, what tells how to read it


class Preset(NamedTuple):
    """Settings that train on a data set: networks, Adam falling to rate 0, a loss with penalties.

    Attributes:
        source: the data set; empty for data of one's own.
        shape: of one sample; empty if it is that of the data.
        lr: of both players at the start.
        decay_from: the part of the run after which the rates fall.
        penalties: their names and weights.
        model: of both networks, such as "mlp" for `mlp_generator` and `mlp_discriminator`.
        network, generator: settings of both networks, and of the generator alone.
    """

    source: str = ""
    shape: tuple[int, ...] = ()
    steps: int = 20_000
    batch: int = 64
    lr: float = 2e-3
    b1: float = 0.5
    b2: float = 0.999
    decay_from: float = 0.5
    loss: str = "non_saturating"
    penalties: tuple[tuple[str, float], ...] = (("r1", 0.3),)
    model: str = "mlp"
    network: Mapping[str, Any] = {"hidden": (128, 128)}
    generator: Mapping[str, Any] = {"latent": 100, "output": "sigmoid"}

    def table(self) -> dict[str, Any]:
        """The configuration, without what follows from the rest."""
        network = {**self.network, **({"shape": self.shape} if self.shape else {})}
        return {
            "loss": self.loss,
            "generator": {"model": f"{self.model}_generator", **network, **self.generator},
            "discriminator": {"model": f"{self.model}_discriminator", **network},
            "optimizer": {
                "name": "Adam",
                "lr": {"name": "linear", "lr": self.lr, "begin": self.decay_from},
                "b1": self.b1,
                "b2": self.b2,
            },
            "penalty": [{"name": name, "weight": weight} for name, weight in self.penalties],
            "training": {"steps": self.steps, "batch": self.batch},
            "data": {"source": self.source} if self.source else {},
        }


# Mixtures in the plane, where the relativistic loss with R1 and R2 converges (Huang et al. 2024, Theorem 3.1). Found by
# some fifteen trials on the ring and the grid that changed several settings at once: which one matters is not known.
POINTS = Preset(
    steps=10_000,
    batch=256,
    lr=3e-3,
    b1=0.0,
    b2=0.99,
    decay_from=0.3,
    loss="relativistic",
    penalties=(("r1", 0.05), ("r2", 0.05)),
    network={"hidden": (128, 128, 128)},
    generator={"latent": 2, "output": "none"},
)

# Convolutions: the losses and optimisers of the papers, with rates that fall, higher ones where a run is short, and
# widths for a run of minutes on two cores. What was tried is in docs/10-local-and-global.md.
CONV = Preset(
    "mnist", (28, 28, 1), 6_000, lr=2e-4, penalties=(), model="dcgan", network={}, generator={"latent": 100}
)
HINGE = CONV._replace(loss="hinge", lr=4e-4, b1=0.0, b2=0.9)  # Miyato et al. 2018; Zhang et al. 2019

PRESETS = {
    "digits": Preset("digits", (8, 8, 1), 6_000, lr=3e-3, penalties=(("r1", 0.1),)),
    "mnist": Preset("mnist", (28, 28, 1)),
    # A weight of 0.1 leaves a grain of single pixels, of 10 little but outlines: the mean absolute Laplacian of the
    # samples is 1.26 and 0.76 of that of the data, with 5 it is 0.85.
    "fashion": Preset("fashion", (28, 28, 1), b2=0.99, penalties=(("r1", 5.0),)),
    "dcgan": CONV,
    "resnet": HINGE._replace(model="resnet", steps=5_000, network={"width": 16}),
    "sagan": HINGE._replace(model="sagan", network={"width": 32}),
    "cvtgan": CONV._replace(
        model="cvtgan", steps=4_000, lr=5e-4, b2=0.99, penalties=(("r1", 0.3),), network={"width": 16}
    ),
    "r3gan": CONV._replace(
        model="r3gan",
        steps=4_000,
        lr=5e-4,
        b1=0.0,
        b2=0.99,
        loss="relativistic",
        penalties=(("r1", 0.3), ("r2", 0.3)),
        network={"width": 16},
    ),
    "ring": POINTS._replace(
        source="ring", shape=(2,), steps=8_000, lr=2e-3, penalties=(("r1", 0.01), ("r2", 0.01))
    ),
    "grid": POINTS._replace(source="grid", shape=(2,)),
    "images": Preset(),
    "points": POINTS,
}


def table(name: str) -> dict[str, Any]:
    """The preset's configuration without what follows from the rest; `ConfigError` lists the names there are."""
    preset: Preset = settings.named(PRESETS, "preset", name)
    return preset.table()


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The whole configuration of a preset, with changes as in `adjusted`.

    >>> from minigan import presets
    >>> presets.config("digits", training={"steps": 100})["optimizer"]["lr"]
    {'name': 'linear', 'lr': 0.003, 'steps': 100, 'begin': 0.5, 'end': 0.0}
    """
    return adjusted(table(name), **changes)


def adjusted(
    config: Mapping[str, Any],
    *,
    training: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    seed: int | None = None,
    lr: float | None = None,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> dict[str, Any]:
    """The whole of a configuration, in which some values are others, and with them those that follow them.

    Args:
        training: of its table; schedules as long as the training stay as long as that.
        data: of its table; for other data than before, what was known of that is left out.
        seed: of the run, and of the networks with the same one.
        lr: of both optimisers, at the start.
        shape: of the samples: the networks', unless the configuration has shapes of its own for the same data.
        classes: of both networks, which makes them conditional.

    Raises `ConfigError` as `settings.check` does.
    """
    whole = settings.check(config)
    networks = [whole[who] for who in PLAYERS]
    optimizers = [whole["optimizer"], whole["discriminator_optimizer"]]
    others = set(data or ()) - {"data_dir"}
    if others:
        whole["data"] = {key: whole["data"][key] for key in SOURCE if key in whole["data"]}
    whole["data"] |= data or {}
    steps = whole["training"]["steps"]
    whole["training"] |= training or {}
    rates = [optimizer["lr"] for optimizer in optimizers] + [
        penalty["weight"] for penalty in whole["penalty"]
    ]
    for rate in (whole["noise"], *rates):
        if isinstance(rate, dict) and rate["steps"] == steps:
            rate["steps"] = whole["training"]["steps"]
    for optimizer in optimizers if lr is not None else ():
        optimizer["lr"] = {**optimizer["lr"], "lr": lr} if isinstance(optimizer["lr"], dict) else lr
    for network in networks:
        if seed is not None and network["seed"] == whole["seed"]:
            network["seed"] = seed
        if shape and (others or not any("shape" in config[who] for who in PLAYERS)):
            network["shape"] = list(shape)
        if classes is not None:
            network["classes"] = classes
    return settings.check(whole | ({} if seed is None else {"seed": seed}))


def assigned(config: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """The configuration with some settings in the way of TOML's dotted keys, `KEY=VALUE`; a bare word is a text.

    Raises `ConfigError` for a text that is none; whether there are such settings is `settings.check`'s to say.

    >>> from minigan import presets
    >>> presets.assigned(presets.table("digits"), ["loss=hinge", "optimizer.b1=0.9"])["optimizer"]["b1"]
    0.9
    """
    import tomllib

    merged = dict(config)
    for text in given:
        key, sign, value = text.partition("=")
        table: Any = None
        for written in (value, json.dumps(value.strip())) if sign else ():
            try:
                table = tomllib.loads(f"{key} = {written}")
                break
            except tomllib.TOMLDecodeError:
                continue
        if not table:
            raise ConfigError(
                f"{text!r} is no setting: expected KEY=VALUE, such as loss=hinge or optimizer.b1=0.9"
            )
        merged = settings.merge(merged, table)
    return merged


def read(path: str) -> dict[str, Any]:
    """The configuration in a TOML file, merged into its `preset` if it names one, or that of a run folder.

    Raises: `ConfigError` with the path and, for a file that is no TOML, the line.
    """
    import tomllib

    file = os.path.join(path, "config.toml") if os.path.isdir(path) else path
    try:
        if not os.path.isfile(file):  # a pipe would keep us waiting
            raise ConfigError(f"{file}: there is no such file of settings; data is given with --data")
        with open(file, "rb") as opened:
            given = tomllib.load(opened)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise (
            error
            if isinstance(error, ConfigError)
            else ConfigError(f"{file}: is no TOML: {error}; data is given with --data")
        ) from None
    try:
        base = table(given.pop("preset")) if "preset" in given else {}
        settings.check(merged := settings.merge(base, given))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return merged
