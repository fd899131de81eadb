"""Hypothesis: edits of accepted inputs, of bytes and of documents; a finding is made as small as it gets."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import MAX_BYTES, Target, believed

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from((2**63, -1, 10**30)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
_DEEP = st.integers(1, 120).map(lambda depth: json.loads("[" * depth + "]" * depth))  # deeper than is read
_BYTES = st.binary(max_size=40) | st.sampled_from(
    (b"\0" * 12, b"7777777777\0", b"\xff" * 12, b'{"a":' * 60, b"\xc0\x80")
)


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            waiting.append(node[key])
    return found


def _document(data: st.DataObject, seed: bytes) -> bytes:
    document = json.loads(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            break
        node, key = places[data.draw(st.integers(0, len(places) - 1))]
        deed = data.draw(st.sampled_from(("set", "set", "set", "drop", "add", "deep", "copy")))
        if deed == "drop":
            del node[key]
        elif deed == "add" and isinstance(node, dict):
            node[data.draw(st.text(max_size=12))] = data.draw(_JSON)
        elif deed == "copy":
            other, name = places[data.draw(st.integers(0, len(places) - 1))]
            try:
                node[key] = json.loads(json.dumps(other[name]))
            except (KeyError, IndexError):
                continue  # dropped before
        else:
            node[key] = data.draw(_DEEP if deed == "deep" else _JSON)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _edited(data: st.DataObject, seed: bytes) -> bytes:
    edited = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at, count = data.draw(st.integers(0, len(edited))), data.draw(st.integers(0, 64))
        edited[at : at + count] = data.draw(_BYTES)
    return bytes(edited)


def guess(target: Target, examples: int, seed: int) -> tuple[int, int, tuple[bytes, Exception] | None]:
    """(inputs, accepted, the smallest input that is a finding and what it raised, or None)."""
    tried = accepted = 0
    last = b""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        nonlocal tried, accepted, last
        kind = data.draw(
            st.sampled_from(("document", "document", "bytes", "noise") if target.textual else ("bytes", "noise"))
        )
        source = data.draw(st.sampled_from(target.seeds))
        made = (
            _document(data, source)
            if kind == "document"
            else _edited(data, source)
            if kind == "bytes"
            else data.draw(st.binary(max_size=300))
        )
        last = made[:MAX_BYTES]
        tried += 1
        accepted += believed(target, last)

    chosen = hypothesis.seed(seed)(one)
    try:
        chosen()
    except Exception as finding:  # noqa: BLE001  # whatever it is, it is what was looked for
        return tried, accepted, (last, finding)
    return tried, accepted, None
