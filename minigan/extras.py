"""Optional packages: imported where they are used, and named with their extra where they are missing."""

import importlib
from typing import Any

from minigan.errors import ExtraError


def needs(module: str, extra: str) -> Any:
    """Import an optional package, or raise `ExtraError` naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraError(
            f'{module.partition(".")[0]} is missing ({error}); pip install "minigan[{extra}]"'
        ) from None
