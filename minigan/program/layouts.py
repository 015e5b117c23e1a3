"""Copies of transposed arrays, where a pointwise call could not be a loop over one axis or two without them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minigan.kernels.rows import row_major
from minigan.program.capture import Call, Ref
from minigan.program.checks import Allocate
from minigan.program.fuse import as_walk, is_pointwise
from minigan.tape import copy


def in_rows(calls: Sequence[Call], new: Allocate) -> list[Call]:
    """The calls, with inputs copied to row-major order where that makes a loop possible; a result once for all.

    The heads of attention, for example, are transposed, and numbers for each row are spread over what comes back to
    them: four axes, of which none can be joined with the next.
    """
    result: list[Call] = []
    copies: dict[tuple[object, ...], Ref] = {}
    for call in calls:
        if is_pointwise(call) and not call.primitive.donates and as_walk(call) is None:
            made: list[Call] = []
            inputs = []
            for x in call.inputs:
                place = x.buffer, x.offset, x.shape, x.strides
                if x.shape == call.outs[0].shape and place not in copies and not row_major([x]):
                    copies[place] = new(np.empty(x.shape, x.dtype))
                    made.append(Call(copy, (x,), (copies[place],)))
                inputs.append(copies.get(place, x))
            changed = replace(call, inputs=tuple(inputs))
            if as_walk(changed) is not None:
                result += made
                call = changed
            else:
                for each in made:
                    (x,) = each.inputs
                    del copies[x.buffer, x.offset, x.shape, x.strides]
        result.append(call)
        overwritten = call.writes
        copies = {place: ref for place, ref in copies.items() if place[0] not in overwritten}
    return result
