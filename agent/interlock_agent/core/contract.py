"""The contract: the inputs, outputs and labels that applications on the device rely on.

It comes from the first confirmed release, or from what a person accepted, and a candidate must keep it. A rename, a
lost tensor, another dtype, a shape that takes or gives less, another label map: each is a break, and each is named.
What only adds is none where the manifest declares it: an output in `added`, an input with a default, labels at the
end with `labels_appended`, a rename in `renamed`. A contract holds the names that applications see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from interlock_shared import canonical
from interlock_shared.manifest import Requirement, Signature, Tensor

DYNAMIC = -1


def contract_of(signature: Signature) -> dict[str, Any]:
    """The contract document of a signature, as `contract.json` holds it."""

    def side(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
        return [
            {"name": signature.renamed.get(t.name, t.name), "dtype": t.dtype, "shape": list(t.shape)} for t in tensors
        ]

    return {
        "schema": "interlock.contract/1",
        "inputs": side([tensor for tensor in signature.inputs if tensor.default is None]),
        "outputs": side(signature.outputs),
        "labels": None if signature.labels is None else len(signature.labels),
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


def _inputs(contract: dict[str, Any], signature: Signature) -> list[str]:
    mine = {signature.renamed.get(tensor.name, tensor.name): tensor for tensor in signature.inputs}
    found = []
    for asked in contract["inputs"]:
        tensor = mine.pop(str(asked["name"]), None)
        found += _differs("input", asked, tensor)
        if tensor is not None and tensor.dtype == asked["dtype"] and not _accepts(tensor.shape, asked["shape"]):
            found.append(_shapes("input", asked, tensor))
    # Applications do not send what they do not know of.
    return found + [f"input {name} is new, and has no default" for name, one in mine.items() if one.default is None]


def _outputs(contract: dict[str, Any], signature: Signature, more_labels: bool) -> list[str]:
    mine = {signature.renamed.get(tensor.name, tensor.name): tensor for tensor in signature.outputs}
    found = []
    for asked in contract["outputs"]:
        tensor = mine.pop(str(asked["name"]), None)
        found += _differs("output", asked, tensor)
        shape = list(asked["shape"])
        if more_labels and shape and signature.labels and shape[-1] == contract["labels"]:
            shape[-1] = len(signature.labels)  # each label has its place on the last axis
        if tensor is not None and tensor.dtype == asked["dtype"] and not _gives(tensor.shape, shape):
            found.append(_shapes("output", asked, tensor))
    # An application that names no outputs gets them all.
    return found + [
        f"output {n} is new, and not declared as added" for n, t in mine.items() if t.name not in signature.added
    ]


def _differs(what: str, asked: dict[str, Any], tensor: Tensor | None) -> list[str]:
    if tensor is None:
        return [f"{what} {asked['name']} is gone"]
    if tensor.dtype != asked["dtype"]:
        return [f"{what} {asked['name']}: dtype {tensor.dtype}, the contract has {asked['dtype']}"]
    return []


def _shapes(what: str, asked: dict[str, Any], tensor: Tensor) -> str:
    return f"{what} {asked['name']}: shape {list(tensor.shape)}, the contract has {list(asked['shape'])}"


def _labels(contract: dict[str, Any], signature: Signature) -> tuple[list[str], bool]:
    """Breaks of the label map, and whether it has grown at its end as declared."""
    wanted = contract.get("labels_sha256")
    if wanted in (None, labels_digest(signature.labels)):
        return [], False
    if signature.labels is None:
        return ["the label map is gone"], False
    if labels_digest(signature.labels[: int(contract.get("labels") or 0)]) != wanted:
        return ["the label map is another one"], False
    return ([], True) if signature.labels_appended else (["the label map has grown, and that is not declared"], False)


def breaks(contract: dict[str, Any], signature: Signature) -> list[str]:
    """Every way in which the signature breaks the contract, for people; empty when it keeps it."""
    labels, more = _labels(contract, signature)
    return _inputs(contract, signature) + _outputs(contract, signature, more) + labels


def difference(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """What changes for applications when `new` takes the place of `old`, line by line."""
    lines = []
    for side in ("inputs", "outputs"):
        before = {str(one["name"]): one for one in (old or {}).get(side, ())}
        after = {str(one["name"]): one for one in new[side]}
        lines += [f"- {side[:-1]} {_one(one)}" for name, one in before.items() if after.get(name) != one]
        lines += [f"+ {side[:-1]} {_one(one)}" for name, one in after.items() if before.get(name) != one]
    if (old or {}).get("labels_sha256") != new["labels_sha256"]:
        lines += [f"- {_label_map(old)}", f"+ {_label_map(new)}"]
    return lines


def _one(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} {list(tensor['shape'])}"


def _label_map(contract: dict[str, Any] | None) -> str:
    if not contract or contract.get("labels_sha256") is None:
        return "no label map"
    return f"{contract.get('labels')} labels {contract['labels_sha256'][:12]}…"


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
    if isinstance(real, str) and isinstance(wanted, str):
        one, two = _as_version(real), _as_version(wanted)
        if one is not None and two is not None:
            width = max(len(one), len(two))
            real, wanted = one + (0,) * (width - len(one)), two + (0,) * (width - len(two))
        elif op not in ("==", "!="):
            return False  # "L4T 36.4" is neither above nor below "550"
    operators: dict[str, Callable[[], Any]] = {
        "in": lambda: isinstance(wanted, (tuple, list)) and real in wanted,
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
