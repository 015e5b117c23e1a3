"""Damaged copies of a file, as a bad disk, a broken download or an attacker would leave them."""

import random
from collections.abc import Iterator

EXTREMES = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged copies of `data`, the same ones for the same seed; about a third are damaged repeatedly."""
    generator = random.Random(seed)  # noqa: S311, not for secrets
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 1, 1, 1, 2, 3))):
            generator.choice(DAMAGES)(damaged, generator)
        yield bytes(damaged)


def flip_bits(data: bytearray, generator: random.Random) -> None:
    for _ in range(generator.choice((1, 1, 2, 8))):
        if data:
            data[_place(data, generator)] ^= 1 << generator.randrange(8)


def truncate(data: bytearray, generator: random.Random) -> None:
    del data[_place(data, generator) :]


def insert(data: bytearray, generator: random.Random) -> None:
    place = _place(data, generator)
    data[place:place] = generator.randbytes(_length(generator))


def append(data: bytearray, generator: random.Random) -> None:
    data += generator.choice(
        (bytes(_length(generator)), generator.randbytes(_length(generator)), bytes(data))
    )


def delete(data: bytearray, generator: random.Random) -> None:
    place = _place(data, generator)
    del data[place : place + _length(generator)]


def overwrite(data: bytearray, generator: random.Random) -> None:
    place, length = _place(data, generator), min(_length(generator), len(data))
    data[place : place + length] = generator.choice(
        (bytes(length), b"\xff" * length, generator.randbytes(length))
    )


def duplicate(data: bytearray, generator: random.Random) -> None:
    place, target = _place(data, generator), _place(data, generator)
    data[target:target] = data[place : place + _length(generator)]


def swap(data: bytearray, generator: random.Random) -> None:
    length = _length(generator)
    one, other = _place(data, generator), _place(data, generator)
    first, second = data[one : one + length], data[other : other + length]
    data[one : one + len(second)] = second
    data[other : other + len(first)] = first


def lie(data: bytearray, generator: random.Random) -> None:
    """An extreme integer, of 1 to 8 bytes in either byte order, over whatever stands there."""
    width = generator.choice((1, 2, 4, 8))
    number = generator.choice((*EXTREMES, generator.getrandbits(64))) % 2 ** (8 * width)
    place = _place(data, generator)
    data[place : place + width] = number.to_bytes(width, generator.choice(("big", "little")))


DAMAGES = (flip_bits, truncate, insert, append, delete, overwrite, duplicate, swap, lie, lie)


def _place(data: bytearray, generator: random.Random) -> int:
    """A place in the file; in half of the cases near its beginning or end, where formats keep their headers."""
    size = max(1, len(data))
    near = min(size, 128)
    return generator.choice(
        (generator.randrange(size), generator.randrange(near), size - 1 - generator.randrange(near))
    )


def _length(generator: random.Random) -> int:
    return generator.choice((1, 2, 4, 8, 16, 64, 500))
