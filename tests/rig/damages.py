"""A good document, damaged in every plain way: what each document from outside is tried with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """`field`: what the refusal must name; "": it cannot name one."""

    words: str
    data: bytes
    field: str = ""


def encoded(document: Any) -> bytes:
    """Canonical JSON, also of what is none of ours."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def wrong(value: Any) -> Any:
    """A value of another kind."""
    return "soon" if isinstance(value, (int, float)) else 7.5


def unreadable(good: Json) -> Iterator[Damage]:
    """What is no document at all, or is one too much."""
    data = encoded(good)
    first = data[1:].partition(b":")[0]
    deep = b"[" * 20_000
    rows = {
        "nothing": b"",
        "no JSON": b"\xff\xfe{",
        "a list": b"[]",
        "null": b"null",
        "cut in half": data[: len(data) // 2],
        "cut at its end": data[:-1],
        "a key twice": b"{" + first + b":1," + data[1:],
        "NaN": data[:-1] + b',"zz":NaN}',
        "Infinity": data[:-1] + b',"zz":-Infinity}',
        "an infinite number": data[:-1] + b',"zz":1e999}',
        "a number of 5,000 digits": data[:-1] + b',"zz":' + b"9" * 5000 + b"}",
        "half of a character": data[:-1] + b',"zz":"\\ud800"}',
        "40 levels": data[:-1] + b',"zz":' + b"[" * 40 + b"]" * 40 + b"}",
        "20,000 levels": data[:-1] + b',"zz":' + deep,
    }
    for words, damaged in rows.items():
        yield Damage(words, damaged)


def misshapen(good: Json, needed: Iterable[str], *, closed: bool = True) -> Iterator[Damage]:
    """JSON of another shape. `needed`: fields that must be there; `closed`: fields that nobody knows are refused."""
    if closed:
        yield Damage("an unknown field", encoded({**good, "colour": "red"}), "colour")
    for field in needed:
        yield Damage(f"no {field}", encoded({name: value for name, value in good.items() if name != field}), field)
    for field, value in good.items():
        yield Damage(f"{field} of another kind", encoded({**good, field: wrong(value)}), field)
        if isinstance(value, int) and not isinstance(value, bool):
            digits = encoded({**good, field: "DIGITS"}).replace(b'"DIGITS"', b"9" * 5000)
            yield Damage(f"{field} of 5,000 digits", digits)
    if "schema" in good:
        kind = str(good["schema"]).partition("/")[0]
        yield Damage("a schema of the future", encoded({**good, "schema": f"{kind}/9"}), "schema")
        yield Damage("a schema of something else", encoded({**good, "schema": "interlock.nothing/1"}), "schema")


def of_signatures(envelope: Json) -> Iterator[Damage]:
    """Signatures of a wrong form, and none at all. A genuine one among them would count."""
    one = dict(envelope["signatures"][0])
    forms: dict[str, Any] = {
        "no signatures": [],
        "signatures that are none": "x",
        "a signature that is a number": [7],
        "a signature without its key": [{"sig": one["sig"]}],
        "a signature without itself": [{"keyid": one["keyid"]}],
        "a signature of another length": [{**one, "sig": one["sig"][:8]}],
        "a signature that is no text": [{**one, "sig": 5}],
        "a signature by an unknown key": [{**one, "keyid": "0" * 64}],
        "a signature in no alphabet": [{**one, "sig": "ünï"}],
    }
    for words, form in forms.items():
        yield Damage(words, encoded({**envelope, "signatures": form}))
