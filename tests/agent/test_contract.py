"""Each break of the contract is named; what only adds is none."""

from __future__ import annotations

from typing import Any

import pytest

from interlock_agent.core import contract as contracts
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
    ("a new output", [X], [Y, tensor("z")], LABELS, []),
    ("a new input", [X, tensor("z")], [Y], LABELS, ["input z is new"]),
    ("a lost input", [tensor("z", [-1, 4])], [Y], LABELS, ["input x is gone", "input z is new"]),
    ("a lost output", [X], [tensor("z", [-1, 3])], LABELS, ["output y is gone"]),
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
    ("a label more", [X], [Y], [*LABELS, "d"], ["the label map is another one"]),
    ("no labels", [X], [Y], None, ["the label map is another one"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "inputs", "outputs", "labels", "found"), BREAKS, ids=[row[0] for row in BREAKS])
def test_breaks_of_the_contract(
    words: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], labels: list[str] | None, found: list[str]
) -> None:
    del words
    assert contracts.breaks(BASE, signature(inputs, outputs, labels)) == found


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


FACTS = {"cuda": "12.4", "arch": "aarch64", "memory_total_bytes": 8 << 30, "tensorrt": "10.0.1+cuda"}


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
    ],
)
def test_requirements(fact: str, op: Any, value: Any, met: bool) -> None:
    found = contracts.unmet([Requirement(fact=fact, op=op, value=value)], FACTS)
    assert (found == []) is met
    assert met or fact in found[0]
