"""How each framework does a scenario: one file for each, with the same functions.

A file has `setup(threads)`, which holds the framework to that many threads and says what has no environment variable,
and one function for each kind of scenario that the framework takes part in, `gan`, `chain`, `conv_gan` or
`conv_layer`, of the scenario, the dtype and the contestant's `variant`. They return a `Program`.

A file for GPUs, `*_cuda.py`, has three more functions: `put(array)`, a copy of a NumPy array on the GPU, of which steps
are then given such; `timed(block)`, the seconds that a function of no arguments takes there, and its result; `peak()`,
the most bytes there that the framework's allocator has held.
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
    kinds: those of the scenarios it takes part in.
    install: how to get it.
    environment: variables of its processes besides those that all have.
    device: "cpu", or "cuda" for the first GPU.
    """

    name: str
    package: str
    module: str
    variant: str
    kinds: tuple[str, ...]
    install: str
    environment: tuple[tuple[str, str], ...] = ()
    device: str = "cpu"

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
# glibc's malloc then keeps the memory it has: large arrays that each step frees and asks for again cost no page faults.
_KEEP = (
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TRIM_THRESHOLD_", str(1 << 40)),
    ("MALLOC_TOP_PAD_", str(1 << 26)),
)
GANS, CONV, ALL_KINDS = (
    ("gan", "conv_gan"),
    ("conv_gan", "conv_layer"),
    ("gan", "chain", "conv_gan", "conv_layer"),
)
ALL = (
    Contestant("minigan", "minigan", "minigan", "compiled", ("gan", *CONV), "pip install ."),
    Contestant("minigan-eager", "minigan", "minigan", "eager", ALL_KINDS, "pip install ."),
    Contestant("torch", "torch", "torch", "eager", ALL_KINDS, _TORCH),
    Contestant("torch-malloc", "torch", "torch", "eager", CONV, _TORCH, _KEEP),
    Contestant("torch-compile", "torch", "torch", "compiled", GANS, _TORCH),
    Contestant("jax", "jax", "jax", "jit", ("gan", *CONV), "pip install jax"),
    Contestant("tf-graph", "tensorflow", "tensorflow_graph", "session", ("gan",), _TENSORFLOW),
    Contestant("tf-function", "tensorflow", "tensorflow", "function", GANS, _TENSORFLOW),
    Contestant("autograd", "autograd", "autograd", "eager", ("chain", *GANS), "pip install autograd"),
    Contestant("mygrad", "mygrad", "mygrad", "eager", ("chain", *GANS), "pip install mygrad"),
    Contestant("tinygrad", "tinygrad", "tinygrad", "jit", ("gan",), "pip install tinygrad"),
)
SGEMM = Contestant("sgemm", "numpy", "sgemm", "product", (), "")


def _on_card(name: str, package: str, variant: str, install: str) -> Contestant:
    own = (
        ("JAX_PLATFORMS", "cuda"),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),
    )  # the others need memory too
    return Contestant(name, package, f"{package}_cuda", variant, GANS, install, own, "cuda")


_TORCH_CUDA = "pip install torch, built for the driver's CUDA"
CARD = (
    _on_card("minigan", "minigan", "compiled", "pip install ."),
    _on_card("minigan-eager", "minigan", "eager", "pip install ."),
    _on_card("torch", "torch", "eager", _TORCH_CUDA),
    _on_card("torch-graph", "torch", "eager-graph", _TORCH_CUDA),
    _on_card("torch-compile", "torch", "compiled", _TORCH_CUDA),
    _on_card("torch-compile-graph", "torch", "compiled-graph", _TORCH_CUDA),
    _on_card("jax", "jax", "jit", "pip install 'jax[cuda13]', or 'jax[cuda12]'"),
)
ON = {"cpu": ALL, "cuda": CARD}
