"""What the commands share: kinds of options, and what is said of a wrong one."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from minigan.backend import usable_device
from minigan.errors import ConfigError
from minigan.report import say


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """For the shell: the names that begin as what is typed."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def option(help: str, *names: str, least: int | None = None, **more: Any) -> Any:
    """An option; numbers from `least`."""
    return typer.Option(*names, help=help, min=least, **more)


def choice(help: str, names: Sequence[str]) -> Any:
    """An option that takes one of these names."""
    return typer.Option(help=help, metavar="|".join(names), autocompletion=among(names))


# `main` looks for it itself, because errors before a command begins obey it too; here it is for the help.
Debug = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback.")]
DataDir = Annotated[str | None, typer.Option(help="Where the files of data sets with a name are.")]
Device = Annotated[
    str,
    typer.Option(
        help="Where to compute; auto: on a GPU if there is one.",
        metavar="auto|cpu|cuda|cuda:N",
        autocompletion=among(("auto", "cpu", "cuda")),
    ),
]
Run = Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or a checkpoint file.")]


def not_empty(**texts: str | None) -> None:
    """An empty text is a mistake, such as of a variable of the shell that is not set."""
    for name, text in texts.items():
        if text == "":
            option = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is empty")


def in_a_folder(**files: str | None) -> None:
    """Refuse files in folders that do not exist, before anything is computed for them."""
    for option, name in files.items():
        if name and not os.path.isdir(os.path.dirname(name) or "."):
            raise ConfigError(f"--{option} {name}: there is no folder {os.path.dirname(name)}")


def usable(device: str) -> str:
    """The full name of the device that was asked for; says why auto is the CPU where CuPy is installed."""
    name, reason = usable_device(device)
    if reason:
        note(f"device auto is the CPU: {reason}")
    return name


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in values.items() if value is not None}


def fail(message: str, code: int) -> int:
    """Say what is wrong, in one line; gives the exit code."""
    say(f"minigan: {clean(message)}", error=True)
    return code


def clean(text: str) -> str:
    """The text as one line that does nothing to a terminal; names of files may hold anything."""
    line = " ".join(text.split()) if len(text.splitlines()) > 1 else text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def note(text: str) -> None:
    """Say what need not stop anybody."""
    fail(f"note: {text}", 0)
