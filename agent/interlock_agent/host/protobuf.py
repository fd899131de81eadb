"""The wire format of protocol buffers, as much as the Open Inference Protocol needs of it
(https://protobuf.dev/programming-guides/encoding/).

Rules of the file:
- Pure, standard library only: a worker on a foreign Python imports it.
- Nothing is copied that is read: what has a length is a view of the message. Unknown fields are the reader's to skip.
- What is no message is `Malformed`, whatever the bytes; groups, which nobody has used for long, are not taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


class Malformed(ValueError):
    """The bytes are no message."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number without sign, of at most 64 bits, and where it ends."""
    value = 0
    for place in range(MAX_VARINT_BYTES):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + place + 1
    raise Malformed("a number does not end")


def fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Of each field in turn: its number, how it is written, its value when that is a varint (else 0), its bytes (of a
    varint those it is written with). Raises Malformed."""
    at = 0
    while at < len(data):
        key, begin = _varint(data, at)
        number, kind, value = key >> 3, key & 7, 0
        if kind == VARINT:
            value, at = _varint(data, begin)
        elif kind == LENGTH:
            size, begin = _varint(data, begin)
            at = begin + size
        elif kind in (FIXED64, FIXED32):
            at = begin + (8 if kind == FIXED64 else 4)
        else:
            raise Malformed(f"a field is written in an unknown way ({kind})")
        if not number or at > len(data):
            raise Malformed("a field is longer than the message, or has no number")
        yield number, kind, value, data[begin:at]


def text(kind: int, data: memoryview) -> str:
    """A string field. Raises Malformed."""
    if kind != LENGTH:
        raise Malformed("a field has another type")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a string is not UTF-8") from None


def message(kind: int, data: memoryview) -> memoryview:
    """The bytes of a message field, or of one of bytes. Raises Malformed."""
    if kind != LENGTH:
        raise Malformed("a field has another type")
    return data


def number(kind: int, value: int) -> int:
    """A field without sign. Raises Malformed."""
    if kind != VARINT:
        raise Malformed("a field has another type")
    return value


def signed(value: int) -> int:
    """A varint as an int64 (or int32, which is written with as many bits)."""
    return value - (1 << 64) if value >> 63 else value


def numbers(kind: int, value: int, data: memoryview) -> Iterable[int]:
    """The elements in a field of repeated varints, which may be packed. Raises Malformed."""
    if kind == VARINT:
        return (value,)
    found, at, packed = list[int](), 0, message(kind, data)
    while at < len(packed):
        one, at = _varint(packed, at)
        found.append(one)
    return found


# --- writing ----------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number; a negative one as 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(field: int, size: int) -> bytes:
    """What stands before so many bytes."""
    return varint(field << 3 | LENGTH) + varint(size)


def of_bytes(field: int, data: bytes) -> bytes:
    """A field of bytes, or a message; there even when it is empty."""
    return head(field, len(data)) + data


def of_text(field: int, value: str) -> bytes:
    """A string; nothing when it is empty, as the third version has it."""
    return of_bytes(field, value.encode()) if value else b""


def of_number(field: int, value: int) -> bytes:
    """A number or truth value; nothing when it is zero."""
    return varint(field << 3 | VARINT) + varint(int(value)) if value else b""


def of_numbers(field: int, values: Iterable[int]) -> bytes:
    """Repeated numbers, packed; nothing when there are none."""
    packed = b"".join(varint(value) for value in values)
    return of_bytes(field, packed) if packed else b""
