"""The command line: `minigan train`, `sample`, `evaluate`, `spectrum`, `inspect` and `data`."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from minigan import __version__
from minigan.commands import look, sets
from minigan.commands.options import fail, note, option
from minigan.commands.train import train
from minigan.errors import (
    CheckpointError,
    CollapseError,
    ConfigError,
    DataError,
    DeviceError,
    MiniganError,
    NonFiniteError,
)
from minigan.report import say

EXITS = (
    (ConfigError, 2),
    (DataError, 3),
    (CheckpointError, 4),
    (NonFiniteError, 5),
    (CollapseError, 6),
    (DeviceError, 7),
)


class Commands(TyperGroup):
    """Commands that Ctrl-C ends with a line of our own."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; gives its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return fail("stopped by SIGINT", 130)


HELP = "Train generative adversarial networks, and draw samples from them."
app = typer.Typer(
    cls=Commands, help=HELP, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)
for name, command in (
    ("train", train),
    ("sample", look.sample),
    ("evaluate", look.measure),
    ("spectrum", look.spectrum),
    ("inspect", look.inspect),
):
    app.command(name)(command)
of_data = typer.Typer(help="Data sets with a name: list them, download their files.", no_args_is_help=True)
of_data.command("list")(sets.list_sets)
of_data.command()(sets.fetch)
app.add_typer(of_data, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"minigan {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    version: Annotated[
        bool, option("Print the version.", "--version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


# Around the commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code: 0, or one for each family of errors."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return app(given, prog_name="minigan", standalone_mode=False) or 0
    except SystemExit as stop:  # of the shell's completion
        return int(stop.code or 0)
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        # Usage errors of typer, which carries click within itself in some versions, and depends on it in others.
        if hasattr(error, "format_message"):
            if not error.format_message():  # help was asked for, and shown
                return 2
            return fail(f"{error.format_message().rstrip('.')} (see minigan --help)", 2)
        if isinstance(error, MiniganError):
            return fail(str(error), next((code for family, code in EXITS if isinstance(error, family)), 1))
        if isinstance(error, OSError) and error.filename is not None:
            return fail(f"{os.fsdecode(error.filename)}: {error.strerror}", 1)
        return fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    finally:
        _settle()


def _show_warning(message: Warning | str, *details: Any) -> None:
    note(str(message))


def _settle() -> None:
    """Where nobody reads standard output any more, send what is left in its buffer nowhere.

    Python would otherwise report the broken pipe at exit and turn the exit code into 120.
    """
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
