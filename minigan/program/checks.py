"""What makes it possible to end a run early: checks for NaN and infinities as parts of loops, and copies to go back to.

A step may require something after it has changed tensors in place, as a game does whose generator diverges when the
discriminator has already moved. So what is overwritten before the last check is copied just before it is overwritten,
in the same loop, and a run that ends early puts back the copies of what it had come to.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minigan.backend import Array
from minigan.comparison import LOGICAL_AND
from minigan.ops.reduce import ALL_FINITE
from minigan.program.capture import REQUIRE, Buffer, Call, Ref
from minigan.tape import Primitive, copy

# One array's part of `all_finite`: its flag, true at the beginning of a run, becomes false.
FINITE = Primitive("finite", lambda x: (((), np.bool_),))

Allocate = Callable[[Array], Ref]


class Backup(NamedTuple):
    """A copy of what `writer` is about to overwrite."""

    writer: Call
    original: Ref
    copy: Ref


def part_by_part(calls: Sequence[Call], new: Allocate) -> tuple[list[Call], list[Buffer]]:
    """The calls with one check for each array in the place of `all_finite`, and the flags.

    Each check can then be a part of the loop that computes the array, or of any that reads it.
    """
    parts: list[Call] = []
    flags: list[Buffer] = []
    for call in calls:
        if call.primitive is not ALL_FINITE:
            parts.append(call)
            continue
        found = []
        for x in call.inputs:
            if x.size:
                found.append(new(np.ones((), np.bool_)))
                parts.append(Call(FINITE, (x,), (found[-1],)))
        flags += [flag.buffer for flag in found]
        (all_of_them,) = call.outs
        if len(found) < 2:
            found += [new(np.ones((), np.bool_)) for _ in range(2 - len(found))]
            flags += [flag.buffer for flag in found[-2:] if flag.buffer not in flags]
        so_far = found[0]
        for k, flag in enumerate(found[1:]):
            result = all_of_them if k == len(found) - 2 else new(np.ones((), np.bool_))
            parts.append(Call(LOGICAL_AND, (so_far, flag), (result,)))
            so_far = result
    return parts, flags


def with_backups(
    calls: Sequence[Call], new: Allocate, ends_early: bool = True
) -> tuple[list[Call], list[Backup]]:
    """The calls with copies of what is overwritten before the last of them that requires something.

    A run that does not end early overwrites all there is, whatever it finds: then that is copied too.
    """
    last = max((k for k, call in enumerate(calls) if call.primitive is REQUIRE), default=0)
    if last and not ends_early:
        last = len(calls)
    result: list[Call] = []
    backups: list[Backup] = []
    saved = set()
    for k, call in enumerate(calls):
        for x in call.outs[: call.primitive.donates] if k < last else ():
            place = x.buffer, x.offset, x.shape, x.strides
            if place not in saved:
                saved.add(place)
                backups.append(Backup(call, x, new(np.empty(x.shape, x.dtype))))
                result.append(Call(copy, (x,), (backups[-1].copy,)))
        result.append(call)
    return result, backups
