"""Tensors as the Open Inference Protocol writes them, in JSON and in bytes, to and from numpy.

Rules of the file:
- Every mismatch is a `BadRequest` that names the input, and says what was expected and what came.
- Bytes are little-endian, row-major; BYTES elements are a 4-byte length and that many bytes (the protocol's binary
  extension). Numeric inputs are views of the request's body, not copies.
- Numpy knows no BF16: its tensors are the 16 bits of each element, as UINT16. Only the dtype's name tells them apart.
- JSON has no NaN and no infinity: refused in a request, `null` in an answer whose signature allows them.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from interlock_agent.host.worker.errors import BadRequest

DTYPES: dict[str, Any] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype("O"),
}
_LENGTH = struct.Struct("<I")


def check_shape(name: str, shape: Any, expected: list[int]) -> tuple[int, ...]:
    """A request's shape against the model's (-1: any). Raises BadRequest."""
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise BadRequest(400, "bad_shape", f"input {name!r}: shape is not a list of sizes")
    fits = len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected))  # noqa: B905 - same length
    if not fits:
        raise BadRequest(400, "wrong_shape", f"input {name!r}: shape {shape}, the model takes {expected}")
    return tuple(shape)


def check_length(name: str, size: int, dtype: str, shape: tuple[int, ...]) -> None:
    """Whether so many bytes can be the tensor; of BYTES only its content tells. Raises BadRequest."""
    if dtype == "BYTES":
        return
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if size != expected:
        message = f"input {name!r}: {size} bytes for shape {list(shape)} of {dtype}, it takes {expected}"
        raise BadRequest(400, "wrong_data_length", message)


def from_bytes(name: str, data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
    """An array over the bytes. Raises BadRequest when they are not exactly the tensor."""
    check_length(name, len(data), dtype, shape)
    kind = DTYPES[dtype]
    if dtype == "BYTES":
        return _strings(name, data, math.prod(shape)).reshape(shape)
    if dtype == "BOOL":
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
    return np.frombuffer(data, kind).reshape(shape)


def _strings(name: str, data: memoryview, count: int) -> Any:
    found: list[str] = []
    offset = 0
    while offset < len(data) and len(found) <= count:
        if offset + 4 > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, offset)
        end = offset + 4 + length
        if end > len(data):
            break
        found.append(_text(name, bytes(data[offset + 4 : end])))
        offset = end
    if offset != len(data) or len(found) != count:
        raise BadRequest(400, "wrong_data_length", f"input {name!r}: the bytes are not {count} BYTES elements")
    array = np.empty(count, dtype=object)
    array[:] = found
    return array


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        # The runtime's string tensors are text; other bytes belong into a UINT8 tensor.
        raise BadRequest(400, "wrong_data", f"input {name!r}: a BYTES element is not UTF-8") from None


def from_json(name: str, data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """An array out of a JSON list, flat or nested. Raises BadRequest."""
    if not isinstance(data, list):
        raise BadRequest(400, "wrong_data", f"input {name!r}: data is not a list")
    if dtype == "BYTES":
        array: Any = np.array(data, dtype=object) if data else np.empty(0, dtype=object)
        flat = array.reshape(-1)
        if not all(type(item) is str for item in flat):
            raise BadRequest(400, "wrong_data", f"input {name!r}: BYTES in JSON are strings")
        return _sized(name, array, shape)
    if dtype == "BF16":
        return _bits(name, from_json(name, data, "FP32", shape))
    try:
        array = np.array(data) if data else np.empty(0, DTYPES[dtype])
    except (ValueError, OverflowError):
        raise BadRequest(400, "wrong_data", f"input {name!r}: data is ragged, or holds what is no number") from None
    kind = DTYPES[dtype]
    allowed = {"b": "b", "f": "fiu"}.get(kind.kind, "iu")
    if array.size and (array.dtype.kind not in allowed or not _all_numbers(data, kind.kind)):
        raise BadRequest(400, "wrong_data", f"input {name!r}: data holds what is not {dtype}")
    array = _within(name, _sized(name, array, shape), dtype)
    with np.errstate(over="ignore"):
        cast = array.astype(kind)
    if kind.kind == "f" and not np.isfinite(cast).all():
        raise BadRequest(400, "wrong_data", f"input {name!r}: a number is outside {dtype}")
    return cast


def from_numbers(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """An array out of one without axes, of a type that has room for the dtype. Raises BadRequest."""
    return _within(name, _sized(name, array, shape), dtype).astype(DTYPES[dtype])


def from_texts(name: str, texts: list[bytes], shape: tuple[int, ...]) -> Any:
    """An array out of elements of BYTES. Raises BadRequest."""
    array: Any = np.empty(len(texts), dtype=object)
    array[:] = [_text(name, text) for text in texts]
    return _sized(name, array, shape)


def _within(name: str, array: Any, dtype: str) -> Any:
    kind = DTYPES[dtype]
    if kind.kind in "iu" and array.size:
        limits = np.iinfo(kind)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise BadRequest(400, "wrong_data", f"input {name!r}: a number is outside {dtype}")
    return array


def _bits(name: str, array: Any) -> Any:
    """FP32 as BF16: the upper half of each, rounded to the nearest, ties to even."""
    whole = array.view(np.uint32)
    bits = ((whole + 0x7FFF + ((whole >> 16) & 1)) >> 16).astype(np.uint16)
    if not is_finite(bits, "BF16"):
        raise BadRequest(400, "wrong_data", f"input {name!r}: a number is outside BF16")
    return bits


def is_finite(array: Any, dtype: str) -> bool:
    """Whether there is no NaN and no infinity in it."""
    if dtype == "BF16":
        return not ((array & 0x7F80) == 0x7F80).any()  # all ones in the exponent
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _all_numbers(data: Any, kind: str) -> bool:
    """Numpy takes true for 1 in a list with numbers; the protocol does not."""
    if kind == "b":
        return True
    stack = [data]
    while stack:
        top = stack.pop()
        if top and isinstance(top[0], list):
            stack.extend(top)
        elif bool in set(map(type, top)):
            return False
    return True


def _sized(name: str, array: Any, shape: tuple[int, ...]) -> Any:
    if array.size != math.prod(shape) or (array.ndim > 1 and array.shape != shape):
        message = f"input {name!r}: data of shape {list(array.shape)} for the shape {list(shape)}"
        raise BadRequest(400, "wrong_data_length", message)
    return array.reshape(shape)


def to_bytes(array: Any) -> bytes | memoryview:
    """The tensor as the binary extension writes it."""
    if array.dtype.kind in "OSU":
        parts = []
        for item in array.reshape(-1):
            data = item if isinstance(item, bytes) else str(item).encode()
            parts += [_LENGTH.pack(len(data)), data]
        return b"".join(parts)
    contiguous: Any = np.ascontiguousarray(array)
    return memoryview(contiguous.reshape(-1)).cast("B") if contiguous.size else b""


def to_json(array: Any, dtype: str) -> list[Any]:
    """The tensor as a flat JSON list; what is not finite becomes null."""
    flat = array.reshape(-1)
    if flat.dtype.kind in "OSU":
        return [item.decode() if isinstance(item, bytes) else str(item) for item in flat]
    if dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    values: list[Any] = flat.tolist()
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return [value if math.isfinite(value) else None for value in values]
    return values
