"""`minigan data`: the data sets with a name."""

import os
from typing import Annotated

import typer

from minigan import data, report
from minigan.commands.options import DataDir, Debug, among, option
from minigan.report import say


def list_sets(data_dir: DataDir = None, debug: Debug = False) -> None:
    """List the data sets with a name, and where they are."""
    for name, known in data.SETS.items():
        where = data.find(name, data_dir) if known.files else "needs no files"
        say(f"{name:10} {known.about}\n{'':10} {where or f'not found: minigan data fetch {name}'}")


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="Of the data set.",
            autocompletion=among([k for k, known in data.SETS.items() if known.files]),
        ),
    ],
    data_dir: Annotated[
        str | None, option("Where to put its folder. Default: $MINIGAN_DATA, or the user's cache.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Download the files of a data set, and check that they are right."""
    known = data.SETS.get(name)
    place = os.path.join(data_dir, known.folder) if data_dir and known else None
    with report.downloads() as show:
        place = data.fetch(name, place, progress=show)
    say(f"{name} is in {place}")
