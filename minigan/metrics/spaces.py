"""Feature spaces: what a measure compares samples by. Every number stands with the name of its space."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minigan.backend import Array
from minigan.errors import ConfigError, ShapeError
from minigan.metrics.samples import as_rows

CHUNK = 1000  # samples whose features are worked out at a time


class Space:
    """A function from samples (N, ...) to features (N, d), with a name.

    Args:
        name: stands in the brackets of every number that comes from these features.
        function: from samples (n, ...), in parts of up to 1,000, to features (n, ...).

    Raises `ConfigError` for an empty name, and in calls `ShapeError` unless there is a row for each sample.

    >>> import numpy as np
    >>> from minigan.metrics import Space
    >>> ink = Space("ink", lambda images: images.mean((1, 2)))
    >>> ink(np.ones((3, 8, 8, 1))).tolist()
    [[1.0], [1.0], [1.0]]
    """

    def __init__(self, name: str, function: Callable[[Array], Any]) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"a feature space needs a name, not {name!r}")
        self.name, self._function = name, function

    def __call__(self, samples: Any) -> Array:
        """The features, (N, d)."""
        given = np.asarray(samples)
        if given.ndim < 2 or 0 in given.shape:
            raise ShapeError(f"{self.name}: samples of shape {given.shape}, expected (N, ...)")
        parts = []
        for i in range(0, len(given), CHUNK):
            part = given[i : i + CHUNK]
            found = np.asarray(self._function(part))
            if found.ndim < 2 or len(found) != len(part):
                raise ShapeError(
                    f"{self.name}: features of shape {found.shape} for samples of shape {part.shape}"
                )
            parts.append(found.reshape(len(found), -1))
        return np.concatenate(parts)

    def __repr__(self) -> str:
        return f"<feature space {self.name}>"


def as_space(features: Space | Callable[[Array], Any]) -> Space:
    """A space as it is, or one of a function with a name; `ConfigError` for one without.

    >>> import numpy as np
    >>> from minigan.metrics import as_space
    >>> as_space(np.sign).name
    'sign'
    """
    if isinstance(features, Space):
        return features
    name = getattr(features, "name", None) or getattr(features, "__name__", None)
    if not isinstance(name, str) or name == "<lambda>" or not callable(features):
        raise ConfigError("the feature space has no name: use minigan.metrics.Space(name, function)")
    return Space(name, features)


def label(measure: str, features: Space | Callable[[Array], Any]) -> str:
    """The name of a number with that of its feature space, as of `as_space`.

    >>> from minigan.metrics import label, pixels
    >>> label("frechet_distance", pixels)
    'frechet_distance[pixels]'
    """
    return f"{measure}[{as_space(features).name}]"


def _flat(samples: Array) -> Array:
    rows = samples.reshape(len(samples), -1)
    return np.divide(rows, 255, dtype=np.float32) if rows.dtype == np.uint8 else rows


pixels = Space("pixels", _flat)
"""Every pixel of every channel, in [0, 1]: bytes are divided by 255, floats are as they are."""

points = Space("points", lambda samples: samples.reshape(len(samples), -1))
"""The coordinates of points, as they are."""


def pca(data: Any, dims: int = 50) -> Space:
    """The first principal components of pixels, fitted on real data (Pearson 1901; Hotelling 1933).

    Features are (x - m) V of the mean m and the orthonormal directions V (d, dims) of largest variance: distances are
    those of pixels within that plane. The name of the space has their number: "pca50".

    Args:
        data: (N, ...), as `pixels` takes them.
        dims: from 1 to the least of N - 1 and d, else `ConfigError`.

    >>> import numpy as np
    >>> from minigan.metrics import pca
    >>> line = np.outer(np.arange(5.0), [3.0, 4.0])
    >>> space = pca(line, dims=1)
    >>> space.name, np.abs(space(line)).ravel().round(6).tolist()
    ('pca1', [10.0, 5.0, 0.0, 5.0, 10.0])
    """
    (rows,) = as_rows("pca", pixels(data))
    most = min(len(rows) - 1, rows.shape[1])
    if isinstance(dims, bool) or not isinstance(dims, int | np.integer) or not 1 <= dims <= most:
        raise ConfigError(
            f"pca: {dims!r} dimensions of {len(rows)} samples of {rows.shape[1]} numbers: expected 1 to {most}"
        )
    mean = rows.mean(0)
    rows -= mean
    # The small side's Gram matrix: 60,000 pictures are not decomposed.
    if rows.shape[1] <= len(rows):
        directions = np.linalg.eigh(rows.T @ rows)[1][:, ::-1][:, :dims]
    else:
        directions = np.linalg.svd(rows, full_matrices=False)[2][:dims].T
    return Space(f"pca{dims}", lambda samples: (_flat(samples) - mean) @ directions)
