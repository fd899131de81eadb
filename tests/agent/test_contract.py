"""Each break of the contract is named; what only adds is none, where it is declared."""

from __future__ import annotations

from typing import Any

import pytest

from interlock_agent.core import contract as contracts
from interlock_shared.errors import Invalid
from interlock_shared.manifest import Requirement, Signature
from tests.agent.material import tensor, the_manifest


def signature(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], labels: list[str] | None = None
) -> Signature:
    return the_manifest(signature={"inputs": inputs, "outputs": outputs, "labels": labels}).signature


X, Y = tensor("x", [-1, 4]), tensor("y", [-1, 3])
BASE = contracts.contract_of(signature([X], [Y], ["a", "b", "c"]))
LABELS = ["a", "b", "c"]

BREAKS: list[tuple[str, list[dict[str, Any]], list[dict[str, Any]], list[str] | None, list[str]]] = [
    ("the same", [X], [Y], LABELS, []),
    ("a new output", [X], [Y, tensor("z")], LABELS, ["output z is new, and not declared as added"]),
    ("a new input", [X, tensor("z")], [Y], LABELS, ["input z is new, and has no default"]),
    ("a new input with a default", [X, tensor("z") | {"default": 0.5}], [Y], LABELS, []),
    ("an input that has a default now", [X | {"default": 0}, tensor("z")], [Y], LABELS,
     ["input z is new, and has no default"]),
    ("a lost input", [tensor("z", [-1, 4])], [Y], LABELS, ["input x is gone", "input z is new, and has no default"]),
    ("a lost output", [X], [tensor("z", [-1, 3])], LABELS,
     ["output y is gone", "output z is new, and not declared as added"]),
    ("another dtype", [tensor("x", [-1, 4], "FP16")], [Y], LABELS, ["input x: dtype FP16, the contract has FP32"]),
    ("a shape that takes less", [tensor("x", [8, 4])], [Y], LABELS,
     ["input x: shape [8, 4], the contract has [-1, 4]"]),
    ("a shape that takes more", [tensor("x", [-1, -1])], [Y], LABELS, []),
    ("another width", [tensor("x", [-1, 5])], [Y], LABELS, ["input x: shape [-1, 5], the contract has [-1, 4]"]),
    ("another rank", [tensor("x", [-1, 4, 1])], [Y], LABELS, ["input x: shape [-1, 4, 1], the contract has [-1, 4]"]),
    ("an output that gives less", [X], [tensor("y", [1, 3])], LABELS, []),
    ("an output that gives more", [X], [tensor("y", [-1, -1])], LABELS,
     ["output y: shape [-1, -1], the contract has [-1, 3]"]),
    ("labels in another order", [X], [Y], ["b", "a", "c"], ["the label map is another one"]),
    ("a label more", [X], [Y], [*LABELS, "d"], ["the label map has grown, and that is not declared"]),
    ("a label less", [X], [Y], ["a", "b"], ["the label map is another one"]),
    ("no labels", [X], [Y], None, ["the label map is gone"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "inputs", "outputs", "labels", "found"), BREAKS, ids=[row[0] for row in BREAKS])
def test_breaks_of_the_contract(
    words: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], labels: list[str] | None, found: list[str]
) -> None:
    del words
    assert contracts.breaks(BASE, signature(inputs, outputs, labels)) == found


Z, WIDER = tensor("z"), tensor("y", [-1, 4])
DECLARED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("an output", {"outputs": [Y, Z], "added": ["z"]}, []),
    ("another output than is declared", {"outputs": [Y, Z, tensor("w")], "added": ["w"]},
     ["output z is new, and not declared as added"]),
    ("labels at the end", {"labels": [*LABELS, "d"], "outputs": [WIDER], "labels_appended": True}, []),
    ("labels at the end, the axis as it was", {"labels": [*LABELS, "d"], "labels_appended": True},
     ["output y: shape [-1, 3], the contract has [-1, 3]"]),
    ("labels in between", {"labels": ["a", "d", "b", "c"], "outputs": [WIDER], "labels_appended": True},
     ["output y: shape [-1, 4], the contract has [-1, 3]", "the label map is another one"]),
    ("an input's name", {"inputs": [tensor("image")], "renamed": {"image": "x"}}, []),
    ("an output's name", {"outputs": [tensor("scores", [-1, 3])], "renamed": {"scores": "y"}}, []),
    ("a name that is still another's", {"inputs": [tensor("image", dtype="FP16")], "renamed": {"image": "x"}},
     ["input x: dtype FP16, the contract has FP32"]),
    ("a wrong name", {"inputs": [tensor("image")], "renamed": {"image": "pixels"}},
     ["input x is gone", "input pixels is new, and has no default"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said", "found"), DECLARED, ids=[row[0] for row in DECLARED])
def test_what_is_declared(words: str, said: dict[str, Any], found: list[str]) -> None:
    del words
    usual = {"inputs": [X], "outputs": [Y], "labels": LABELS}
    assert contracts.breaks(BASE, the_manifest(signature=usual | said).signature) == found


REFUSED: list[dict[str, Any]] = [
    {"renamed": {"image": "x"}},  # no such tensor
    {"added": ["x"]},  # an input
    {"inputs": [X, Z], "renamed": {"z": "x"}},  # two of one name
    {"inputs": [X | {"default": 0}]},  # nothing is left to send
    {"outputs": [Y | {"default": 0}]},
    {"inputs": [X, tensor("z", [-1, -1]) | {"default": 0}]},  # how much of it?
    {"inputs": [X, tensor("z", [1 << 20]) | {"default": 0}]},
    {"inputs": [X, tensor("z", [], "UINT8") | {"default": 256}]},
    {"inputs": [X, tensor("z", [], "INT64") | {"default": 0.5}]},
    {"inputs": [X, tensor("z", [], "BOOL") | {"default": 1}]},
    {"inputs": [X, tensor("z", [], "BYTES") | {"default": 1}]},
]


@pytest.mark.parametrize("said", REFUSED, ids=str)
def test_a_declaration_that_cannot_be(said: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        the_manifest(signature={"inputs": [X], "outputs": [Y]} | said)


@pytest.mark.parametrize(("dtype", "value"), [("INT8", -128), ("UINT64", 2**53), ("FP16", 1), ("BOOL", True)])
def test_a_default_of_each_kind(dtype: str, value: Any) -> None:
    the_manifest(signature={"inputs": [X, tensor("z", [-1, 2], dtype) | {"default": value}], "outputs": [Y]})


def test_a_contract_has_the_names_that_applications_see() -> None:
    said = {"inputs": [tensor("image"), Z | {"default": 0}], "outputs": [Y], "renamed": {"image": "x"}}
    contract = contracts.contract_of(the_manifest(signature=said).signature)
    assert [one["name"] for one in contract["inputs"]] == ["x"]


def test_the_difference_of_two_contracts_for_people() -> None:
    other = contracts.contract_of(signature([X], [tensor("y", [-1, 4]), Z], [*LABELS, "d"]))
    lines = contracts.difference(BASE, other)
    assert lines[:3] == ["- output y FP32 [-1, 3]", "+ output y FP32 [-1, 4]", "+ output z FP32 [-1, 4]"]
    assert (lines[3][:11], lines[4][:11]) == ("- 3 labels ", "+ 4 labels ")
    assert contracts.difference(BASE, BASE) == []
    assert contracts.difference(None, BASE)[0] == "+ input x FP32 [-1, 4]"


def test_a_contract_without_labels_allows_any() -> None:
    assert contracts.breaks(contracts.contract_of(signature([X], [Y])), signature([X], [Y], ["a"])) == []


@pytest.mark.parametrize(
    ("inputs", "outputs", "found"),
    [
        ([{"name": "x", "dtype": "FP32", "shape": ["N", 4]}], [{"name": "y", "dtype": "FP32", "shape": [None, 3]}], 0),
        ([{"name": "x", "dtype": "FP64", "shape": ["N", 4]}], [{"name": "y", "dtype": "FP32", "shape": [None, 3]}], 1),
        ([{"name": "x", "dtype": "FP32", "shape": [4]}], [{"name": "y", "dtype": "FP32", "shape": [None, 3]}], 1),
        ([], [{"name": "y", "dtype": "FP32", "shape": [None, 3]}], 1),
        ([{"name": "x", "dtype": "FP32", "shape": [1, 4]}, {"name": "k", "dtype": "FP32", "shape": [1]}], [], 2),
    ],
)
def test_a_model_that_is_not_what_it_says(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], found: int
) -> None:
    assert len(contracts.loaded_differently(signature([X], [Y]), inputs, outputs)) == found


FACTS = {
    "cuda": "12.4",
    "driver": "L4T 36.4.3",
    "arch": "aarch64",
    "memory_total_bytes": 8 << 30,
    "tensorrt": "10.0.1+cuda",
}


@pytest.mark.parametrize(
    ("fact", "op", "value", "met"),
    [
        ("cuda", ">=", "12.4.0", True),
        ("cuda", ">=", "12.10", False),  # as versions, not as text
        ("cuda", "<", "12.10", True),
        ("cuda", "!=", "11", True),
        ("cuda", ">", "12.4", False),
        ("cuda", "<=", "12.4", True),
        ("tensorrt", "==", "10.0.1", True),
        ("arch", "==", "aarch64", True),
        ("arch", "in", ("x86_64", "aarch64"), True),
        ("arch", "in", ("x86_64",), False),
        ("memory_total_bytes", ">=", 4 << 30, True),
        ("memory_total_bytes", ">=", 16 << 30, False),
        ("memory_total_bytes", ">=", "4", False),  # text against a number is no answer
        ("no_such_fact", "==", "1", False),
        ("driver", ">=", "550", False),  # no version: neither above nor below
        ("driver", "<", "550", False),
        ("driver", "!=", "550", True),
        ("memory_total_bytes", "in", 4, False),
        ("arch", "in", "aarch64-and-more", False),  # one of several, not a part of a text
    ],
)
def test_requirements(fact: str, op: Any, value: Any, met: bool) -> None:
    found = contracts.unmet([Requirement(fact=fact, op=op, value=value)], FACTS)
    assert (found == []) is met
    assert met or fact in found[0]
