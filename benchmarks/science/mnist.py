"""The two parts of MNIST, which the studies that need it keep apart."""

import functools
import os

from minigan.data import DataSet, find, read
from minigan.errors import DataError

_TEST = ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte")
_NAMES = [name + end for name in _TEST for end in ("", ".gz")]


@functools.cache
def mnist() -> tuple[DataSet, DataSet]:
    """The 60,000 training and the 10,000 test images with their labels; `DataError` where they are not at hand."""
    train = read("mnist")
    folder = str(find("mnist"))
    path = next((p for p in (os.path.join(folder, name) for name in _NAMES) if os.path.exists(p)), None)
    if path is None:
        raise DataError(f"mnist: {folder} has none of {', '.join(_NAMES)}")
    return train, read(path)
