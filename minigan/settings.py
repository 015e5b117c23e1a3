"""Networks, optimisers and penalties as plain values, and back: what a file of settings can say of a run.

What a table may hold is read off the signature of the function that it is for. Names are looked up in the tables
below and nowhere else: no name in a file is ever imported.
"""

import inspect
import math
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

import numpy as np

from minigan import losses, models, optim, penalties
from minigan.data.sampler import SAMPLINGS
from minigan.errors import ConfigError
from minigan.game import UPDATES, Game
from minigan.guard import POLICIES
from minigan.monitor import ANSWERS
from minigan.nn import Module, init as initializers
from minigan.ops import Stream
from minigan.optim import Curve, Optimizer
from minigan.packs import packed
from minigan.penalties import Penalty
from minigan.sampling import LATENTS
from minigan.tensor import Tensor

Table = dict[str, Any]
Field = tuple[Any, Any]  # the type and the default of a setting

REQUIRED: Any = inspect.Parameter.empty
NONE = "none"  # TOML has no null
LONGEST = 63  # of a list: NumPy's arrays have at most 64 axes, and one is the batch
DEEPEST = 20  # of tables
KINDS = ("mlp", "dcgan", "resnet", "sagan", "cvtgan", "r3gan")  # of networks


def _by_name(*functions: Callable[..., Any]) -> dict[str, Any]:
    return {function.__name__: function for function in functions}


_MODELS = {
    who: _by_name(*(getattr(models, f"{kind}_{who}") for kind in KINDS))
    for who in ("generator", "discriminator")
}
_PENALTIES = _by_name(penalties.r1, penalties.r2, penalties.wgan_gp, penalties.dragan)
_OPTIMIZERS = _by_name(optim.SGD, optim.RMSProp, optim.Adam)
_SCHEDULES = _by_name(optim.constant, optim.linear, optim.cosine, optim.exponential)
_INITIALIZERS = _by_name(
    initializers.glorot_uniform,
    initializers.glorot_normal,
    initializers.he_uniform,
    initializers.he_normal,
    initializers.normal,
    initializers.orthogonal,
    initializers.zeros,
)


def named(table: Iterable[str], what: str, name: Any) -> Any:
    """The entry of that name, if the table has entries; `ConfigError` lists the names there are."""
    if not isinstance(name, str) or name not in table:
        raise ConfigError(f"{what} {reprlib.repr(name)} does not exist; there are {', '.join(table)}")
    return table[name] if isinstance(table, Mapping) else None


def plain(x: Any, name: str = "it", depth: int = 0) -> Any:
    """Settings as TOML and JSON can write them: NumPy's numbers as Python's, sequences as lists, `None` as "none".

    Raises `ConfigError` for an integer of more than TOML's 64 bits, and for tables in tables without end; bytes of a
    path that are no UTF-8 are escaped.
    """
    if depth > DEEPEST:
        raise ConfigError(f"{reprlib.repr(name)} is within {depth} tables or lists")
    if isinstance(x, Mapping):
        return {key: plain(value, str(key), depth + 1) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(each, name, depth + 1) for each in x]
    if isinstance(x, (np.generic, np.ndarray)):
        return plain(x.tolist(), name, depth)
    if isinstance(x, str):
        return x.encode("utf-8", "backslashreplace").decode()
    if isinstance(x, int) and not -(2**63) <= x < 2**63:
        raise ConfigError(
            f"{reprlib.repr(name)} is an integer of {x.bit_length()} bits: expected up to 64, with its sign"
        )
    return NONE if x is None else x


# What a table may hold


class _Names(NamedTuple):
    """The type of a text that has to be one of these names."""

    what: str
    names: Iterable[str]


_NAMED = {
    "loss": _Names("loss", losses.table),
    "update": _Names("update", UPDATES),
    "init": _Names("initialiser", _INITIALIZERS),
    "dtype": _Names("dtype", ("float32", "float64")),
}


def _fields(function: Callable[..., Any]) -> dict[str, Field]:
    """Type and default of every argument; functions and types stand as their names, as they do in a file."""
    found = {}
    for p in inspect.signature(function).parameters.values():
        default = p.default if p.default is REQUIRED else plain(getattr(p.default, "__name__", p.default))
        found[p.name] = (_NAMED.get(p.name, p.annotation), default)
    return found


_OF_GAME = (
    *("loss", "ema", "d_steps", "update", "share_fake", "smoothing", "noise"),
    *("consensus", "unroll", "pack", "feature_matching", "augment"),
)
_GAN: dict[str, Field] = {
    "seed": (int, 0),
    "latent": (_Names("latent", LATENTS), "uniform"),
    **{name: field for name, field in _fields(Game).items() if name in _OF_GAME},
    "generator": (dict, REQUIRED),
    "discriminator": (dict, REQUIRED),
    "optimizer": (dict, {"name": "Adam", "lr": 1e-3, "b1": 0.5}),
    "discriminator_optimizer": (dict, {}),  # empty: as the generator's
    "penalty": (list, []),
    "training": (dict, {}),
    "data": (dict, {}),
}
_TRAINING: dict[str, Field] = {
    "steps": (int, 10_000),
    "batch": (int, 64),
    "sample_every": (int, 1000),
    "save_every": (int, 1000),
    "on_nonfinite": (_Names("on_nonfinite", POLICIES), "stop"),
    "max_faults": (int, 10),
    "monitor_every": (int, 500),
    "on_collapse": (_Names("on_collapse", ANSWERS), "warn"),
    "first_step": (int, 0),
    "sampling": (_Names("sampling", SAMPLINGS), "shuffled"),
    "importance_weights": (bool, False),
}
_DATA: dict[str, Field] = {
    **dict.fromkeys(("source", "data_dir"), (str | None, None)),
    **dict.fromkeys(("size", "channels"), (int | None, None)),
    # Of the data that were read, for whoever repeats the run.
    "shape": (Sequence[int] | None, None),
    **dict.fromkeys(("dtype", "sha256"), (str | None, None)),
}

_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda x: isinstance(x, bool)),
    int: ("an integer", lambda x: type(x) is int),
    float: ("a finite number", lambda x: type(x) in (int, float) and abs(x) <= sys.float_info.max),
    str: ("a text", lambda x: isinstance(x, str)),
    dict: ("a table", lambda x: isinstance(x, dict)),
    list: ("a list of tables", lambda x: isinstance(x, list)),
    Sequence: (
        f"a list of up to {LONGEST} integers",
        lambda x: isinstance(x, list) and len(x) <= LONGEST and all(type(each) is int for each in x),
    ),
    Callable: ("a table of a schedule", lambda x: isinstance(x, dict)),
    NoneType: (f'"{NONE}"', lambda x: x is None or x == NONE),
}


def _value(where: str, name: str, value: Any, kind: Any, steps: int) -> Any:
    """The value of a setting, if it is of its type."""
    if isinstance(kind, _Names):
        named(kind.names, f"{where}{kind.what}", value)
        return value
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    known = [each for each in (get_origin(each) or each for each in kinds) if each in _KINDS]
    found = next((each for each in reversed(known) if _KINDS[each][1](value)), None)  # "none" is a text too
    if found is None:
        expected = " or ".join(_KINDS[each][0] for each in known)
        raise ConfigError(f"{where}{name} is {reprlib.repr(value)}: expected {expected}")
    if found is Callable:
        return _called(f"{where.strip('[] ')}.{name}".strip("."), value, "schedule", _SCHEDULES, steps=steps)
    return None if found is NoneType else float(value) if found is float else value


def _filled(where: str, given: Any, known: Mapping[str, Field], steps: int = 1) -> Table:
    """The table with all its settings: those given, checked, and the defaults of the others."""
    if not isinstance(given, dict):
        raise ConfigError(f"[{where}] is {reprlib.repr(given)}: expected a table")
    for key in given:
        if key not in known:
            import difflib  # only a wrong file needs it

            who = f"[{where}]" if where else "the configuration"
            near = difflib.get_close_matches(str(key)[:99], known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ConfigError(f"{who} has no key {reprlib.repr(key)}{hint} there are {', '.join(known)}")
    filled = {}
    for key, (kind, default) in known.items():
        value = given.get(key, default)
        if value is REQUIRED:
            raise ConfigError(f"[{where}] needs {key!r}" if where else f"the configuration needs [{key}]")
        filled[key] = _value(f"[{where}] " if where else "", key, value, kind, steps)
    return filled


def _called(
    where: str, given: Any, what: str, functions: Mapping[str, Callable[..., Any]], **defaults: Any
) -> Table:
    """The table of a function, which it names, with all the function's arguments."""
    key = "model" if what == "model" else "name"
    if not isinstance(given, dict) or key not in given:
        raise ConfigError(
            f"[{where}] is {reprlib.repr(given)}: expected a table with {key!r}, one of {', '.join(functions)}"
        )
    function = named(functions, f"[{where}] {what}", given[key])
    known = _fields(function)
    if what == "schedule":  # one record for all, as `describe_rate` gives it, with the function's defaults
        known = _of_schedule(function)
    if what == "penalty":  # whose first argument has several names in the papers, and one in files
        known = {"weight" if i == 0 else name: field for i, (name, field) in enumerate(known.items())}
    known |= {name: (known[name][0], value) for name, value in defaults.items() if name in known}
    return _filled(where, given, {key: (str, REQUIRED)} | known, defaults.get("steps", 1))


def _of_schedule(function: Callable[..., Any]) -> dict[str, Field]:
    """The fields of a `Curve`, with the defaults that the function has for some of them."""
    return {name: field for name, field in _fields(Curve).items() if name != "name"} | _fields(function)


def check(config: Mapping[str, Any], shape: Sequence[int] | None = None) -> Table:
    """The configuration of a run with every setting in it: those given, and the functions' defaults.

    A seed of a network that is not given is that of the run; the `steps` of a schedule are those of the training; the
    optimiser of the discriminator is the generator's; the shape of a network is `shape`, or the other network's; and
    its classes are those of the other network.

    What is off is `None` in the result, and "none" in a file.

    Raises: `ConfigError` that names the table and the key, for one that does not exist, with the nearest one that
        does, and for a value of another type.

    >>> from minigan import settings
    >>> config = {"generator": {"model": "mlp_generator"}, "discriminator": {"model": "mlp_discriminator"}}
    >>> settings.check(config | {"optimizer": {"name": "Adam", "lrate": 0.1}})
    Traceback (most recent call last):
        ...
    minigan.errors.ConfigError: [optimizer] has no key 'lrate'; did you mean 'lr'? there are name, lr, ...
    """
    given: Table = plain(config)
    training = _filled("training", given.get("training", {}), _TRAINING)
    if isinstance(given.get("penalty"), dict):
        given["penalty"] = [given["penalty"]]
    checked = _filled("", given, _GAN, training["steps"])
    defaults = {"seed": checked["seed"]}
    for key, first in (("shape", shape), ("classes", None)):
        if value := first or next(filter(None, (checked[who].get(key) for who in _MODELS)), None):
            defaults[key] = value
    for who in _MODELS:
        checked[who] = _called(who, checked[who], "model", _MODELS[who], **plain(defaults))
    made, taken = (checked[who]["shape"] for who in _MODELS)
    if made == taken and checked["pack"] > 1:  # what is given once, for both, is the shape of one sample
        checked["discriminator"]["shape"] = list(packed(tuple(made), checked["pack"]))
    checked["discriminator_optimizer"] = checked["discriminator_optimizer"] or checked["optimizer"]
    for who in ("optimizer", "discriminator_optimizer"):
        checked[who] = _called(who, checked[who], "optimizer", _OPTIMIZERS, steps=training["steps"])
    checked["penalty"] = [
        _called(f"penalty {i}", each, "penalty", _PENALTIES, steps=training["steps"])
        for i, each in enumerate(checked["penalty"], 1)
    ]
    data = {k: v for k, v in _filled("data", checked["data"], _DATA).items() if v is not None}
    return checked | {"training": training, "data": data}


def completed(config: Mapping[str, Any]) -> Table:
    """The settings of a run with those that its version of minigan did not know, as they were then: the defaults."""
    defaults = {name: plain(default) for name, (_, default) in _GAN.items() if default is not REQUIRED}
    whole = defaults | {"ema": NONE} | dict(config)  # which was left out where it was off
    for who in _MODELS:
        whole[who] = {"classes": NONE} | whole[who]
    for who in ("optimizer", "discriminator_optimizer"):
        whole[who] = _with_defaults(whole[who], _OPTIMIZERS)
    for rate in (whole, *(whole[who] for who in ("optimizer", "discriminator_optimizer"))):
        for name in {"lr", "noise"} & rate.keys():
            rate[name] = _with_defaults(rate[name], _SCHEDULES)
    return whole


def _with_defaults(given: Any, functions: Mapping[str, Callable[..., Any]]) -> Any:
    """The table of a function with the defaults that it lacks; anything else as it is."""
    if not isinstance(given, dict) or given.get("name") not in functions:
        return given
    function = functions[given["name"]]
    known = _of_schedule(function) if functions is _SCHEDULES else _fields(function)
    return {name: default for name, (_, default) in known.items() if default is not REQUIRED} | given


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> Table:
    """`base` with the values of `override`, table by table; a table that names another function replaces its like.

    >>> from minigan.settings import merge
    >>> merge({"optimizer": {"name": "Adam", "b1": 0.5, "lr": 0.1}}, {"optimizer": {"lr": 0.2}})
    {'optimizer': {'name': 'Adam', 'b1': 0.5, 'lr': 0.2}}
    """
    merged = dict(base)
    for key, value in override.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            same = all(value.get(name, old.get(name)) == old.get(name) for name in ("name", "model"))
            value = merge(old, value) if same else value
        merged[key] = value
    return merged


# The things themselves


def _repr(x: Any) -> str:
    """The `repr` without addresses, which differ in the process that resumes a run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(x))


def describe_network(network: Module) -> Table:
    """The network's function in `minigan.models` and its arguments, or its `repr` if it is one of a user's own."""
    known = isinstance(network, (models.Generator, models.Discriminator)) and network.config
    return known or {"model": "custom", "repr": _repr(network)}


def build_network(config: Mapping[str, Any], limit: int | None = None) -> Module:
    """A new network from what `describe_network` gave.

    `ConfigError` for one of more than `limit` weights, before any memory is asked for: a file may say anything.
    """
    functions = {name: function for of_player in _MODELS.values() for name, function in of_player.items()}
    settings: Table = plain(config)
    if isinstance(settings, dict) and settings.get("model") == "mlp_generator":
        settings.setdefault("output", NONE)  # the first files left out what is off
    settings = _called("network", settings, "model", functions)
    function, init = functions[settings.pop("model")], _INITIALIZERS[settings.pop("init")]
    if limit is not None:
        left = limit

        def count(stream: Stream, shape: tuple[int, ...], dtype: Any) -> Tensor:
            nonlocal left
            left -= math.prod(shape)
            if left < 0:
                raise ConfigError(f"the network has more weights than {limit}: layer of shape {shape}")
            return Tensor(np.broadcast_to(np.ones((), dtype), shape))  # which takes no memory

        function(**settings, init=count)
    return function(**settings, init=init)  # type: ignore[no-any-return]


def arguments(config: Mapping[str, Any], limit: int | None = None) -> Table:
    """What `GAN` takes, from what `GAN.config` gave; errors as for `check` and `build_network`."""
    made = check({"ema": NONE, **config})  # left out where it is off, as above
    del made["training"], made["data"]
    for who in _MODELS:
        made[who] = build_network(config[who], limit)
    for who in ("optimizer", "discriminator_optimizer"):
        made[who] = build_optimizer(made[who])
    penalty = [build_penalty(each) for each in made["penalty"]]
    return made | {"penalty": penalty, "noise": build_rate(made["noise"])}


def describe_rate(rate: float | Callable[[int], float]) -> Any:
    """A number, or a schedule as a table: its name and numbers, or its `repr` if it is one of a user's own."""
    if isinstance(rate, Curve):
        return dict(vars(rate))
    return {"name": "custom", "repr": _repr(rate)} if callable(rate) else rate


def build_rate(config: Any) -> float | Curve:
    """A number or a schedule from what `describe_rate` gave."""
    return Curve(**config) if isinstance(config, dict) else config


def describe_optimizer(optimizer: Optimizer) -> Table:
    """The optimiser's class and settings, with its schedule as a table of its own."""
    return {"name": type(optimizer).__name__, **vars(optimizer), "lr": describe_rate(optimizer.lr)}


def build_optimizer(config: Mapping[str, Any]) -> Optimizer:
    """An optimiser from what `describe_optimizer` gave."""
    settings = _called("optimizer", plain(config), "optimizer", _OPTIMIZERS)
    settings["lr"] = build_rate(settings["lr"])
    return _OPTIMIZERS[settings.pop("name")](**settings)  # type: ignore[no-any-return]


def describe_penalty(penalty: Penalty) -> Table:
    """The penalty's function and its numbers, with a schedule as a table of its own."""
    return {"name": penalty.name, "weight": describe_rate(penalty.weight), **penalty.settings}


def build_penalty(config: Mapping[str, Any]) -> Penalty:
    """A penalty from what `describe_penalty` gave."""
    settings = _called("penalty", plain(config), "penalty", _PENALTIES)
    weight = build_rate(settings.pop("weight"))
    return _PENALTIES[settings.pop("name")](weight, **settings)  # type: ignore[no-any-return]
