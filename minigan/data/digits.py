"""1,797 real handwritten digits, 8x8 pixels, carried by the package; where they are from stands in `NOTICE`."""

import os

import numpy as np

from minigan.backend import Array
from minigan.errors import DataError

COUNT, SIDE, WHITE = 1797, 8, 16


def digits() -> tuple[Array, Array]:
    """The images, float32 (1797, 8, 8, 1) in [0, 1], and the labels, int64 (1797,), of the embedded digits.

    Raises `DataError` if the installed file is damaged. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of
    Handwritten Digits", UCI Machine Learning Repository, 1998, doi 10.24432/C50P49, CC BY 4.0.

    >>> import minigan as mg
    >>> images, labels = mg.data.digits()
    >>> images.shape, images.max().item(), labels[:5].tolist()
    ((1797, 8, 8, 1), 1.0, [0, 1, 2, 3, 4])
    """
    import gzip  # not at the top: `import minigan` would load it for everyone

    path = os.path.join(os.path.dirname(__file__), "digits.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            rows = np.loadtxt(file, np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: {error}; install minigan again") from None
    if rows.shape != (COUNT, SIDE * SIDE + 1):
        raise DataError(
            f"{path}: {rows.shape} numbers, expected {(COUNT, SIDE * SIDE + 1)}; install minigan again"
        )
    images = rows[:, :-1].reshape(COUNT, SIDE, SIDE, 1).astype(np.float32) / WHITE
    return images, rows[:, -1].astype(np.int64)
