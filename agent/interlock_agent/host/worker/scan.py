"""What an ONNX file asks for, seen before a runtime opens it: by its own reading of the wire format, nothing else.

Rules of the file:
- Read are opset imports, operators with their domains, and where weights lie; the weights themselves are skipped.
- The format is read as protobuf's parsers read it (the last of a field wins, unknown fields are skipped); what they
  would refuse is refused. Where a field may come more than once, all of it is looked at: nothing hides behind another.
- Depth and number of fields are bounded; nothing is recursive. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Union

from interlock_agent.host.worker.errors import LoadError

# Operators that ONNX and its runtime bring along. The names with "ms" and "microsoft" are ONNX Runtime's own.
STANDARD = frozenset(
    """
    ai.onnx ai.onnx.ml ai.onnx.training ai.onnx.preview.training com.microsoft com.microsoft.experimental
    com.microsoft.nchwc com.ms.internal.nhwc
    """.split()
) | {""}
COMPILED = "EPContext"

FIELDS_MAX = 20_000_000  # of one file; a graph of 100,000 nodes has some 2 million
DEPTH_MAX = 100  # of messages in messages, as protobuf's own parsers
NAMES_MAX = 4096  # different operators, domains or files
NAME_BYTES_MAX = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Message -> field number -> message inside.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "opset": {},
    "entry": {},
}
# Message -> field number -> what is kept of it, and the type it has on the wire.
_KEPT: dict[str, dict[int, tuple[str, int]]] = {
    "opset": {1: ("domain", _BYTES), 2: ("version", _VARINT)},
    "function": {1: ("name", _BYTES), 10: ("domain", _BYTES)},
    "node": {4: ("op", _BYTES), 7: ("domain", _BYTES)},
    "attribute": {1: ("name", _BYTES), 3: ("i", _VARINT), 4: ("s", _BYTES)},
    "entry": {1: ("key", _BYTES), 2: ("value", _BYTES)},
}
Data = Union[bytes, memoryview, mmap.mmap]  # noqa: UP007 - evaluated when the module is imported, by Python 3.10 too
Known = dict[str, Union[int, str]]  # noqa: UP007


class MalformedError(Exception):
    """This is no ONNX file, or one beyond the bounds."""


@dataclass
class Found:
    """What is in a file. `operators`: (domain, type) of every node, also in functions and subgraphs; `functions`: what
    the file defines itself; `external`: where weights and compiled contexts lie, as written there."""

    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external: set[str] = field(default_factory=set)

    @property
    def compiled(self) -> bool:
        """Whether there are compiled contexts: native code that runs when it is opened."""
        return any(operator == COMPILED for _, operator in self.operators)

    @property
    def custom(self) -> set[str]:
        """Domains of operators that neither the file nor the runtime has."""
        return {domain for domain, operator in self.operators - self.functions if domain not in STANDARD}


def scan(data: Data) -> Found:
    """Look at a whole file. Raises MalformedError."""
    found = Found()
    size = len(data)
    if not size:
        raise MalformedError("it is empty")
    # Open messages: kind, end, what is kept of it.
    stack: list[tuple[str, int, Known]] = [("model", size, {})]
    contexts: list[dict[str, Known]] = []  # the attributes of each open node, by name
    at = fields = 0
    while stack:
        kind, end, known = stack[-1]
        if at == end:
            stack.pop()
            _closed(kind, known, found, contexts)
            continue
        fields += 1
        if fields > FIELDS_MAX:
            raise MalformedError(f"more than {FIELDS_MAX} fields")
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise MalformedError(f"field number {number}")
        if wire == _BYTES:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise MalformedError("a field is longer than what it is in")
            inside = _MESSAGES[kind].get(number)
            if inside is not None:
                if len(stack) >= DEPTH_MAX:
                    raise MalformedError(f"nested deeper than {DEPTH_MAX}")
                stack.append((inside, at + length, {}))
                if inside == "node":
                    contexts.append({})
                continue
            _keep(kind, number, wire, known, data, at, length)
            at += length
        elif wire == _VARINT:
            value, at = _varint(data, at, end)
            _keep(kind, number, wire, known, data, value, 0)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
            if at > end:
                raise MalformedError("a number is cut off")
        else:
            raise MalformedError(f"wire type {wire}")
    if not found.operators and not found.opsets:
        raise MalformedError("it has neither operators nor opsets")
    return found


def _varint(data: Data, at: int, end: int) -> tuple[int, int]:
    """The value (64 bits) and the position after it."""
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise MalformedError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7


def _keep(kind: str, number: int, wire: int, known: Known, data: Data, at: int, length: int) -> None:
    name, wanted = _KEPT.get(kind, {}).get(number, ("", -1))
    if wire != wanted:
        return  # not ours, or of a type that a parser skips as unknown
    if wire == _VARINT:
        known[name] = at
    elif length <= NAME_BYTES_MAX:
        known[name] = bytes(data[at : at + length]).decode("utf-8", "surrogateescape")
    elif (kind, name) == ("attribute", "s"):
        known[name] = ""  # a text, an image, an engine: no file has such a name
    else:
        raise MalformedError(f"a name of {length} bytes")


def _closed(kind: str, known: Known, found: Found, contexts: list[dict[str, Known]]) -> None:
    """Take down what a message said, at its end."""
    if kind == "opset":
        domain, version = str(known.get("domain", "")), int(known.get("version", 0))
        found.opsets[domain] = max(version, found.opsets.get(domain, 0))
    elif kind == "function":
        found.functions.add((str(known.get("domain", "")), str(known.get("name", ""))))
    elif kind == "entry" and known.get("key") == "location":
        found.external.add(str(known.get("value", "")))
    elif kind == "attribute" and contexts:
        contexts[-1][str(known.get("name", ""))] = known
    elif kind == "node":
        attributes = contexts.pop()
        operator = str(known.get("op", ""))
        found.operators.add((str(known.get("domain", "")), operator))
        embedded = attributes.get("embed_mode", {}).get("i", 1)
        if operator == COMPILED and embedded != 1 and "ep_cache_context" in attributes:
            found.external.add(str(attributes["ep_cache_context"].get("s", "")))
    if max(len(found.operators), len(found.functions), len(found.opsets), len(found.external)) > NAMES_MAX:
        raise MalformedError(f"more than {NAMES_MAX} different names")


def problems(
    found: Found, files: Collection[str], compiled: bool, custom: Collection[str]
) -> Iterator[tuple[str, str]]:
    """(code, words) for what is in there and was not declared; `files`: names that the seal lists."""
    if found.compiled and not compiled:
        yield "compiled_context", "it holds compiled contexts (EPContext), and does not declare it"
    foreign = sorted(found.custom - set(custom))
    if foreign:
        yield "custom_ops", f"operators of {', '.join(map(repr, foreign[:5]))} are neither the runtime's nor declared"
    outside = sorted(found.external - set(files))
    if outside:
        yield "external_data", f"it points to {', '.join(repr(name[:100]) for name in outside[:5])}, not in the bundle"


def check(path: str, files: Collection[str], compiled: bool, custom: Collection[str]) -> Found:
    """Look at a verified file. Raises LoadError (`compiled_context`, `custom_ops`, `external_data`, `load_failed`)."""
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = scan(data)
    except (MalformedError, ValueError) as bad:
        raise LoadError("load_failed", f"{name} is no ONNX model: {bad}") from None
    except OSError as bad:
        raise LoadError("corrupt", f"{name}: {bad}") from None
    for code, words in problems(found, files, compiled, custom):
        raise LoadError(code, f"{name}: {words}")
    return found
