"""Arrays and devices: the only place that decides where an array lives and how it is allocated.

`host` has NumPy's arrays, `cuda` those of a GPU. Until a first array is put on a GPU, nothing here looks at it.
"""

from collections.abc import Sequence

import numpy as np

from minigan.backend import cuda
from minigan.backend.host import (
    ALIGNMENT as ALIGNMENT,
    FLOATS as FLOATS,
    KINDS as KINDS,
    Array as Array,
    Spec as Spec,
    aligned_zeros as aligned_zeros,
    allocate as allocate,
    is_number as is_number,
    native as native,
    one_blas_thread as one_blas_thread,
    set_blas_threads as set_blas_threads,
    supported as supported,
    weak as weak,
)
from minigan.errors import DeviceError


def device_name(device: str | None) -> str:
    """The full name of a device: "cpu" for `None`, "cuda:0" for "cuda".

    `DeviceError`, with the reason, for one that is not there.

    >>> from minigan.backend import device_name
    >>> device_name(None)
    'cpu'
    """
    if device in (None, "cpu"):
        return "cpu"
    return f"cuda:{cuda.number(str(device))}"


def usable_device(device: str) -> tuple[str, str]:
    """The full name of a device on which a kernel could be run, and "".

    For "auto" that of a GPU if one can be used, and else "cpu" with the reason, "" if CuPy is not installed; it does
    not fail. `DeviceError`, with the reason, for another one that cannot be used.

    >>> from minigan.backend import usable_device
    >>> usable_device("cpu")
    ('cpu', '')
    """
    if device == "auto" and not cuda.installed():
        return "cpu", ""
    try:
        name = device_name("cuda" if device == "auto" else device)
        if name != "cpu":
            cuda.try_out(name)
    except DeviceError as error:
        if device != "auto":
            raise
        return "cpu", str(error)
    return name, ""


def describe_device(device: str) -> str:
    """What the bits of a computation depend on: "cpu", or what card it is."""
    return "cpu" if device == "cpu" else cuda.describe(device)


def device_of(array: Array) -> str:
    """Where an array is: "cpu", "cuda:0" and so on."""
    return cuda.device_of(array) if cuda.is_on_device(array) else "cpu"


def common_device(name: str, arrays: Sequence[Array]) -> str:
    """Where all of these arrays are; `DeviceError` for operation `name` if that is not one device."""
    devices = [device_of(x) for x in arrays]
    if len(set(devices)) > 1:
        listed = ", ".join(f"{d} {x.dtype} {x.shape}" for d, x in zip(devices, arrays, strict=True))
        raise DeviceError(
            f"{name}: arrays on {' and '.join(sorted(set(devices)))}: {listed}: move one by .to(device)"
        )
    return devices[0]


def moved(array: Array, device: str) -> Array:
    """The array on a device: itself if it is there, else a copy."""
    here = device_of(array)
    if here == device:
        return array
    host = array if here == "cpu" else cuda.fetch(array)
    return host if device == "cpu" else cuda.put(host, device)


def constant(number: Array, beside: Array) -> Array:
    """A number, an array of shape (), where another array is; on a GPU one array for all that are equal."""
    if not cuda.is_on_device(beside):
        return number
    array: Array = cuda.constant(number.tobytes(), number.dtype, cuda.device_of(beside))
    return array


def full(spec: Spec, value: float, device: str) -> Array:
    """A new array filled with one number."""
    shape, dtype = spec
    array = np.full(shape, value, dtype)
    return array if device == "cpu" else cuda.put(array, device)


def zeros_like(array: Array) -> Array:
    """Zeros of the shape, dtype and device of an array, in C order."""
    return full((array.shape, array.dtype), 0, device_of(array))


def lasting_zeros_like(array: Array) -> Array:
    """The same, for memory that is used many times: on the CPU it begins at a cache line."""
    if cuda.is_on_device(array):
        return zeros_like(array)
    return aligned_zeros(array.shape, array.dtype)


def broadcast_view(array: Array, shape: tuple[int, ...]) -> Array:
    """The array with axes repeated, as a view."""
    view: Array = (
        cuda.broadcast_to(array, shape) if cuda.is_on_device(array) else np.broadcast_to(array, shape)
    )
    return view
