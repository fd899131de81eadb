"""Canonical JSON: one document, one byte string.

Sorted keys, no white space, UTF-8, no NaN or Infinity, shortest round-trip floats (as CPython's repr writes them).
Follows RFC 8785 where documents use it: object keys here are ASCII, so that sorting by code point and by UTF-16
unit are the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from interlock_shared.errors import Invalid

DEPTH_MAX = 32  # deeper documents than any of ours; keeps the parser off the recursion limit


def encode(document: Any) -> bytes:
    """Canonical bytes of a JSON-able value. Raises ValueError for NaN or Infinity, Invalid for half a character."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # JSON may spell one half of a surrogate pair; UTF-8 has no bytes for it
        raise Invalid("a text holds half of a surrogate pair", field="document") from None


def sha256(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # `1e999`: no canonical form could be written of it
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _depth(data: bytes) -> int:
    deepest = depth = 0
    inside = escaped = False
    for byte in data:
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                inside = False
        elif byte == 0x22:
            inside = True
        elif byte in (0x7B, 0x5B):
            depth += 1
            deepest = max(deepest, depth)
        elif byte in (0x7D, 0x5D):
            depth -= 1
    return deepest


def decode(data: bytes, *, limit: int, what: str) -> dict[str, Any]:
    """Parse one JSON object from outside: size and depth capped, no duplicate keys, no NaN.

    Raises Invalid, naming `what`.
    """
    if len(data) > limit:
        raise Invalid(f"{what}: {len(data)} bytes, more than {limit} are not read", field=what)
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and _depth(data) > DEPTH_MAX:
        raise Invalid(f"{what}: nested deeper than {DEPTH_MAX}", field=what)
    try:
        document = json.loads(
            data, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, UnicodeDecodeError, RecursionError) as bad:
        raise Invalid(f"{what}: not JSON: {bad}", field=what) from None
    if not isinstance(document, dict):
        raise Invalid(f"{what}: a JSON object is expected", field=what)
    return document
