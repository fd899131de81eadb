"""The contract: the inputs, outputs and labels that applications on the device rely on.

It comes from the first confirmed release, and a candidate must keep it. A rename, a lost tensor, another dtype, a
shape that takes or gives less, another label map: each is a break, and each is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interlock_shared import canonical
from interlock_shared.manifest import Requirement, Signature, Tensor

DYNAMIC = -1


def contract_of(signature: Signature) -> dict[str, Any]:
    """The contract document of a signature, as `contract.json` holds it."""
    return {
        "schema": "interlock.contract/1",
        "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in signature.inputs],
        "outputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in signature.outputs],
        "labels_sha256": labels_digest(signature.labels),
    }


def labels_digest(labels: Sequence[str] | None) -> str | None:
    """Digest of the label map; order counts, since a label is an index."""
    return None if labels is None else canonical.sha256(canonical.encode(list(labels)))


def _accepts(mine: Sequence[int], asked: Sequence[int]) -> bool:
    """Whether an input of shape `mine` takes all that one of shape `asked` took."""
    return len(mine) == len(asked) and all(m in (DYNAMIC, a) for m, a in zip(mine, asked, strict=True))


def _gives(mine: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether an output of shape `mine` gives nothing that one of shape `expected` did not."""
    return len(mine) == len(expected) and all(e in (DYNAMIC, m) for m, e in zip(mine, expected, strict=True))


def _side(what: str, contract: list[dict[str, Any]], tensors: Sequence[Tensor]) -> list[str]:
    mine = {tensor.name: tensor for tensor in tensors}
    breaks = []
    for asked in contract:
        name, shape = str(asked["name"]), [int(axis) for axis in asked["shape"]]
        tensor = mine.pop(name, None)
        if tensor is None:
            breaks.append(f"{what} {name} is gone")
            continue
        if tensor.dtype != asked["dtype"]:
            breaks.append(f"{what} {name}: dtype {tensor.dtype}, the contract has {asked['dtype']}")
        fits = _accepts(tensor.shape, shape) if what == "input" else _gives(tensor.shape, shape)
        if not fits:
            breaks.append(f"{what} {name}: shape {list(tensor.shape)}, the contract has {shape}")
    if what == "input":  # applications do not send what they do not know of; a new output harms nobody
        breaks += [f"input {name} is new" for name in mine]
    return breaks


def breaks(contract: dict[str, Any], signature: Signature) -> list[str]:
    """Every way in which the signature breaks the contract, for people; empty when it keeps it."""
    found = _side("input", contract["inputs"], signature.inputs)
    found += _side("output", contract["outputs"], signature.outputs)
    digest = labels_digest(signature.labels)
    if contract.get("labels_sha256") not in (None, digest):
        found.append("the label map is another one")
    return found


def loaded_differently(signature: Signature, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> list[str]:
    """Where the model that was opened is not what its manifest says (names and dtypes; axes by number)."""
    found = []
    for what, declared, real in (("input", signature.inputs, inputs), ("output", signature.outputs, outputs)):
        opened = {str(tensor["name"]): tensor for tensor in real}
        for tensor in declared:
            seen = opened.pop(tensor.name, None)
            if seen is None:
                found.append(f"{what} {tensor.name} is declared, the model has none")
            elif seen["dtype"] != tensor.dtype:
                found.append(f"{what} {tensor.name}: declared {tensor.dtype}, the model has {seen['dtype']}")
            elif len(seen["shape"]) != len(tensor.shape):
                found.append(f"{what} {tensor.name}: declared {len(tensor.shape)} axes, has {len(seen['shape'])}")
        if what == "input":
            found += [f"input {name} of the model is not declared" for name in opened]
    return found


def _as_version(value: str) -> tuple[int, ...] | None:
    parts = value.split("+", maxsplit=1)[0].split("-", maxsplit=1)[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else None


def _compare(real: Any, op: str, wanted: Any) -> bool:
    if op == "in":
        return real in wanted
    if isinstance(real, str) and isinstance(wanted, str):
        one, two = _as_version(real), _as_version(wanted)
        if one is not None and two is not None:
            width = max(len(one), len(two))
            real, wanted = one + (0,) * (width - len(one)), two + (0,) * (width - len(two))
    operators = {
        "==": lambda: real == wanted,
        "!=": lambda: real != wanted,
        ">=": lambda: real >= wanted,
        ">": lambda: real > wanted,
        "<=": lambda: real <= wanted,
        "<": lambda: real < wanted,
    }
    try:
        return bool(operators[op]())
    except TypeError:
        return False


def unmet(requirements: Sequence[Requirement], fingerprint: dict[str, Any]) -> list[str]:
    """Each requirement that the device does not meet, with both values."""
    found = []
    for requirement in requirements:
        real = fingerprint.get(requirement.fact)
        if real is None:
            found.append(f"{requirement.fact} {requirement.op} {requirement.value}: this device has none")
        elif not _compare(real, requirement.op, requirement.value):
            found.append(f"{requirement.fact} {requirement.op} {requirement.value}: this device has {real}")
    return found
