"""How each framework does a scenario: one file for each, with the same functions.

A file has `setup(threads)`, which holds the framework to that many threads and says what has no environment variable,
and `gan(scenario, dtype)`, `chain(scenario, dtype)` or both, each with the contestant's `variant` as a last argument
where the file has several. They return a `Program`.
"""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import Any, NamedTuple


class Unsupported(Exception):
    """What a framework cannot do, in words for the table."""


class NotThere(Exception):
    """A part of a framework that this installation does not have, in words for the table."""


class Program(NamedTuple):
    """A step that has been built.

    step: takes the arrays of a step and makes it; the result may still be on its way.
    read: waits for such a result, and for the changed weights, and returns its numbers: the discriminator's and the
        generator's loss before their updates; of a chain the sum and the sums of the squares of both gradients.
    """

    step: Callable[..., Any]
    read: Callable[[Any], tuple[float, ...]]


class Contestant(NamedTuple):
    """What takes part, and where to find it.

    name: in tables and on the command line.
    package: what must be there to import.
    module: file in this folder.
    variant: which of the programs in that file.
    kinds: the scenarios it takes part in, "gan" or "chain".
    install: how to get it.
    """

    name: str
    package: str
    module: str
    variant: str
    kinds: tuple[str, ...]
    install: str

    @property
    def ours(self) -> bool:
        """Whether it is minigan."""
        return self.package == "minigan"

    @property
    def is_installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """Of its package; empty for one that is only a folder here."""
        for name in (self.package, f"{self.package}-cpu"):
            with suppress(metadata.PackageNotFoundError):
                return metadata.version(name)
        return ""


_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
_TENSORFLOW = "pip install tensorflow-cpu"
BOTH = ("gan", "chain")
ALL = (
    Contestant("minigan", "minigan", "minigan", "compiled", ("gan",), "pip install ."),
    Contestant("minigan-eager", "minigan", "minigan", "eager", BOTH, "pip install ."),
    Contestant("torch", "torch", "torch", "eager", BOTH, _TORCH),
    Contestant("torch-compile", "torch", "torch", "compiled", ("gan",), _TORCH),
    Contestant("jax", "jax", "jax", "jit", ("gan",), "pip install jax"),
    Contestant("tf-graph", "tensorflow", "tensorflow_graph", "session", ("gan",), _TENSORFLOW),
    Contestant("tf-function", "tensorflow", "tensorflow", "function", ("gan",), _TENSORFLOW),
    Contestant("autograd", "autograd", "autograd", "eager", BOTH, "pip install autograd"),
    Contestant("mygrad", "mygrad", "mygrad", "eager", BOTH, "pip install mygrad"),
    Contestant("tinygrad", "tinygrad", "tinygrad", "jit", ("gan",), "pip install tinygrad"),
)
SGEMM = Contestant("sgemm", "numpy", "sgemm", "product", (), "")
