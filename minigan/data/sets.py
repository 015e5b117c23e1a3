"""The data sets that have a name, where they are looked for, and `read`, which reads these and everyone's own."""

import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.data.arrays import read_arrays
from minigan.data.digits import digits
from minigan.data.mixtures import Mixture, grid, ring, swiss_roll
from minigan.data.pngs import read_pngs
from minigan.data.sampler import as_images, as_labels, as_points
from minigan.errors import ConfigError, DataError
from minigan.files import Path, shown
from minigan.ops.random import Stream

POINTS = 100_000  # of a mixture, as in the sources of `ring`


class DataSet(NamedTuple):
    """Samples and what is known of them.

    Args:
        name: of the set, or the path.
        samples: images, (N, H, W, C), uint8 or float32 in [0, 1]; or points, float32 (N, P).
        labels: int64 (N,), or `None`.
    """

    name: str
    samples: Array
    labels: Array | None


class Known(NamedTuple):
    """What is known of a data set with a name.

    Args:
        about: it, in a line.
        make: gives the samples and labels of a set that needs no files.
        folder: the name of the folder of its files.
        files: the size and SHA-256 of each, in gzip; the training images and their labels first.
        mirrors: addresses to which the names of the files are added.
        labels: CRC-32 of the training labels, by which sets with files of the same names are told apart.
    """

    about: str
    make: Callable[[], tuple[Array, Array]] | None = None
    folder: str = ""
    files: Mapping[str, tuple[int, str]] = {}
    mirrors: tuple[str, ...] = ()
    labels: int = -1


def _files(table: str) -> dict[str, tuple[int, str]]:
    rows = (line.split() for line in table.splitlines())
    return {name: (int(size), sha256) for name, size, sha256 in rows}


def _mixture(name: str, make: Callable[[], Mixture]) -> Callable[[], tuple[Array, Array]]:
    return lambda: make().sample(POINTS, Stream(0, name))


MNIST = """\
train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"""
FASHION = """\
train-images-idx3-ubyte.gz 26421880 3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
train-labels-idx1-ubyte.gz 29515 a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
t10k-images-idx3-ubyte.gz 4422102 346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
t10k-labels-idx1-ubyte.gz 5148 67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"""

SETS = {
    "digits": Known("1,797 handwritten digits, 8x8 (Alpaydin and Kaynak 1998), carried by minigan", digits),
    "mnist": Known(
        "60,000 handwritten digits, 28x28 (LeCun, Cortes and Burges 1998)",
        folder="mnist",
        files=_files(MNIST),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        labels=3121080559,
    ),
    "fashion": Known(
        "60,000 pictures of clothes, 28x28 (Xiao, Rasul and Vollgraf 2017)",
        folder="fashion-mnist",
        files=_files(FASHION),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        labels=785835114,
    ),
    "ring": Known("100,000 points of 8 Gaussians on a circle", _mixture("ring", ring)),
    "grid": Known("100,000 points of 25 Gaussians on a grid of 5x5", _mixture("grid", grid)),
    "swiss_roll": Known("100,000 points along a spiral", _mixture("swiss_roll", swiss_roll)),
}


def cache_folder() -> str:
    """What minigan keeps for the user: minigan in `$XDG_CACHE_HOME`, or in ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "minigan")


def roots(data_dir: Path | None = None) -> list[str]:
    """Where data sets are looked for: `data_dir`, `$MINIGAN_DATA`, and minigan/data in the user's cache."""
    given = os.fsdecode(data_dir) if data_dir else None
    places = (given, os.environ.get("MINIGAN_DATA"), os.path.join(cache_folder(), "data"))
    return [place for place in places if place]


def find(name: str, data_dir: Path | None = None) -> str | None:
    """The folder in which the files of a data set of `SETS` are, if they are in any of the places.

    These are, and their subfolders of the set's name (`mnist`, `fashion-mnist`) before themselves: `data_dir`; the
    folder that the environment names in MINIGAN_DATA; minigan/data in $XDG_CACHE_HOME or ~/.cache.

    >>> import tempfile, minigan as mg
    >>> mg.data.find("digits", tempfile.mkdtemp())
    """
    known = SETS.get(name, Known(""))
    folders = [os.path.join(root, part) for root in roots(data_dir) for part in (known.folder, "")]
    first = next(iter(known.files), None)
    return next((folder for folder in folders if first and os.path.exists(_file(folder, first))), None)


def _file(folder: str, name: str) -> str:
    """The path of a file in one of the spellings in use: inflated or with .gz, with -idx or .idx."""
    plain = name.removesuffix(".gz")
    names = [base + end for base in (plain, plain.replace("-idx", ".idx")) for end in ("", ".gz")]
    paths = [os.path.join(folder, spelled) for spelled in names]
    return next(filter(os.path.exists, paths), os.path.join(folder, name))


def read(
    source: Path, *, data_dir: Path | None = None, size: int | None = None, channels: int | None = None
) -> DataSet:
    """A data set by its name, or everyone's own by its path, wholly in memory; images of bytes stay bytes.

    Args:
        source: a name in `SETS`; a file of NumPy (NPY, or NPZ with an array `images` and perhaps `labels`); an IDX
            file, plain or in gzip; or a folder of PNGs. For a file whose name has `images` in it, the labels are read
            from the one with `labels` there instead, if it exists. Write ./mnist for a path that is also a name.
        data_dir: where to look for the files of a name before the places that `find` lists.
        size, channels: of the pictures of a folder, as for `minigan.data.pngs.read_pngs`.

    Casts: floats of any width and byte order become float32, integers that are labels int64; arrays in Fortran's order
    and bytes in another are brought in order.

    Raises `DataError`, with the path and the byte, if the data is not there, damaged, not numbers of these kinds, or
    all of one value; `ConfigError` for settings that do not apply; `ExtraError` for PNGs without Pillow (extra `cli`).

    >>> import minigan as mg
    >>> data = mg.data.read("grid")
    >>> data.name, data.samples.shape, data.labels.max().item()
    ('grid', (100000, 2), 24)
    """
    name = os.fsdecode(source)
    known, path = SETS.get(name), name
    pictures = known is None and os.path.isdir(name)
    if (size, channels) != (None, None) and not pictures:
        raise ConfigError(f"{shown(name)}: size and channels are for a folder of pictures")
    if known and known.make:
        return DataSet(name, *known.make())
    if known:
        folder, images = find(name, data_dir), next(iter(known.files))
        if folder is None:
            places = ", ".join(map(shown, roots(data_dir)))
            raise DataError(
                f"{name}: {images} is in none of {places}, nor in a folder {known.folder} there; to download it:"
                f" minigan data fetch {name}"
            )
        path = _file(folder, images)
    elif os.path.basename(name) == name and not os.path.exists(name):
        raise DataError(f"{shown(name)}: no file or folder here; data sets with a name are {', '.join(SETS)}")
    samples, labels = (read_pngs(path, size, channels), None) if pictures else _with_labels(path)
    try:
        return DataSet(shown(name), *_checked(samples, labels, known))
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from None


def _with_labels(path: str) -> tuple[Array, Array | None]:
    samples, labels = read_arrays(path)
    folder, base = os.path.split(path)
    other = _file(folder, re.sub(r"idx\d", "idx1", base.replace("images", "labels")))
    if labels is None and "images" in base and os.path.exists(other):
        labels = read_arrays(other)[0]
    return samples, labels


def _checked(samples: Array, labels: Array | None, known: Known | None) -> tuple[Array, Array | None]:
    samples = as_points(samples) if samples.ndim == 2 else as_images(samples)
    if samples.ndim == 4 and samples.shape[3] not in (1, 3):
        hint = "; use np.moveaxis(images, 1, -1)" if samples.shape[1] in (1, 3) else ""
        raise DataError(
            f"images of shape {samples.shape[1:]} each: expected 1 or 3 channels, which come last{hint}"
        )
    if known and samples.shape[1:] != (28, 28, 1):
        raise DataError(f"images of shape {samples.shape[1:]} each: expected (28, 28, 1)")
    labels = None if labels is None else as_labels(labels, len(samples), 10 if known else 1 << 31)
    if samples.min() == samples.max():
        raise DataError(f"all values of {len(samples)} samples are {samples.flat[0]}")
    if known:
        if labels is None:
            raise DataError("there is no file of their labels beside it")
        import zlib

        crc = zlib.crc32(labels.astype(np.uint8).tobytes())
        others = [name for name, other in SETS.items() if other is not known and other.labels == crc]
        if others:
            raise DataError(f"its labels are those of {others[0]}")
    return samples, labels
