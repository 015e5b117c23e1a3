"""The axes of arrays that one loop walks through together."""

from typing import Protocol


class Placed(Protocol):
    """An array of which shape and strides are known."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def strides(self) -> tuple[int, ...]: ...  # noqa: D102


def broadcast_strides(array: Placed, shape: tuple[int, ...]) -> list[int]:
    """Bytes from element to element along each axis of the shape that an array is broadcast to."""
    lead = len(shape) - len(array.shape)
    return [0] * lead + [0 if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True)]


def collapse(shape: tuple[int, ...], strides: list[list[int]]) -> tuple[tuple[int, ...], list[list[int]]]:
    """The axes with those joined that every array walks through in one go; at least one axis."""
    dims: list[int] = []
    walked: list[list[int]] = [[] for _ in strides]
    for axis, n in enumerate(shape):
        if n == 1:
            continue
        if dims and all(w[-1] == s[axis] * n for w, s in zip(walked, strides, strict=True)):
            dims[-1] *= n
            for w, s in zip(walked, strides, strict=True):
                w[-1] = s[axis]
        else:
            dims.append(n)
            for w, s in zip(walked, strides, strict=True):
                w.append(s[axis])
    if not dims:
        return (1,), [[0] for _ in strides]
    return tuple(dims), walked
