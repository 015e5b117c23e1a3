"""Runs without their last pictures: to import Matplotlib and to draw takes as long as all else that a short run does.

Run as a program, this file is the command `minigan`, with empty files for these pictures.
"""

import sys
from typing import Any

from minigan import pictures

CURVES, GIF = pictures.loss_curves, pictures.save_gif


def empty(path: Any, *what: Any) -> None:
    open(path, "wb").close()


def leave_pictures_empty(patch: Any = setattr) -> None:
    """`patch` is to be `setattr`, or that of pytest's `monkeypatch`."""
    patch(pictures, "loss_curves", empty)
    patch(pictures, "save_gif", empty)


if __name__ == "__main__":
    sys.modules["scipy"] = None  # type: ignore[assignment]  # Numba imports it if it is there, which takes a second
    from minigan.__main__ import main

    leave_pictures_empty()
    sys.exit(main())
