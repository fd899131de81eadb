"""The scanner of ONNX files sees what the onnx library sees, and nothing hides from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from interlock_agent.host.worker import scan
from interlock_agent.host.worker.errors import LoadError
from interlock_agent.host.worker.scan import Found, MalformedError
from tests.host import models


def outside(name: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=name)
    return tensor


def graph(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto] | None = None) -> onnx.GraphProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    return helper.make_graph(nodes, "g", [x], [y], weights or [])


def model(*nodes: onnx.NodeProto, weights: list[onnx.TensorProto] | None = None, **more: Any) -> onnx.ModelProto:
    return helper.make_model(graph(list(nodes), weights), **more)


def node(op: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, ["x"], ["y"], domain=domain, **attributes)


# --- what is found -----------------------------------------------------------------------------------------------


def test_opsets_operators_and_weights_outside() -> None:
    made = model(
        node("Relu"),
        node("Gelu", "com.microsoft"),
        weights=[outside("w.bin")],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
    )
    found = scan.scan(made.SerializeToString())
    assert found.opsets == {"": 17, "com.microsoft": 1}
    assert found.operators == {("", "Relu"), ("com.microsoft", "Gelu")}
    assert found.external == {"w.bin"}
    assert (found.compiled, found.custom) == (False, set())


HIDING_PLACES: dict[str, onnx.ModelProto] = {
    "an attribute": model(node("Constant", value=outside("/etc/shadow"))),
    "a list of tensors": model(node("Odd", many=[outside("/etc/shadow")])),
    "a subgraph": model(node("If", then_branch=graph([node("Evil", "evil")], [outside("/etc/shadow")]))),
    "a subgraph of a subgraph": model(
        node("If", then_branch=graph([node("Loop", body=graph([node("Evil", "evil")]))]))
    ),
    "a list of graphs": model(node("Odd", many=[graph([node("Evil", "evil")])])),
    "a function": model(
        node("Mine", "local"),
        functions=[helper.make_function("local", "Mine", ["x"], ["y"], [node("Evil", "evil")], [])],
    ),
    "training": onnx.ModelProto(
        graph=graph([node("Relu")]), training_info=[onnx.TrainingInfoProto(algorithm=graph([node("Evil", "evil")]))]
    ),
}


@pytest.mark.parametrize("where", HIDING_PLACES)
def test_nothing_hides_in(where: str) -> None:
    found = scan.scan(HIDING_PLACES[where].SerializeToString())
    assert found.custom == {"evil"} or found.external == {"/etc/shadow"}


def test_what_the_file_defines_itself_is_no_custom_operator() -> None:
    function = helper.make_function("local", "Mine", ["x"], ["y"], [node("Relu")], [helper.make_opsetid("", 17)])
    found = scan.scan(model(node("Mine", "local"), node("Other", "local"), functions=[function]).SerializeToString())
    assert found.custom == {"local"}  # for the other one
    assert scan.scan(model(node("Mine", "local"), functions=[function]).SerializeToString()).custom == set()


@pytest.mark.parametrize(("mode", "external"), [(1, set()), (0, {"../engine.bin"})])
def test_a_compiled_context_and_where_its_engine_lies(mode: int, external: set[str]) -> None:
    made = model(node("EPContext", "com.microsoft", embed_mode=mode, ep_cache_context="../engine.bin"))
    found = scan.scan(made.SerializeToString())
    assert (found.compiled, found.external) == (True, external)


def test_the_last_of_a_field_wins_and_all_that_repeats_is_seen() -> None:
    def raw(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    two = raw(4, b"Relu") + raw(4, b"EPContext")
    data = raw(7, raw(1, two)) + raw(7, raw(1, raw(4, b"Tanh") + raw(7, b"evil")))
    assert scan.scan(data).operators == {("", "EPContext"), ("evil", "Tanh")}
    assert {n.op_type for n in onnx.load_model_from_string(data).graph.node} == {"EPContext", "Tanh"}


# --- what is refused ---------------------------------------------------------------------------------------------

FILES = ("model.onnx", "w.bin")
REFUSED: list[tuple[str, onnx.ModelProto, str]] = [
    ("compiled", model(node("EPContext", "com.microsoft", embed_mode=1)), "compiled_context"),
    ("custom", model(node("Evil", "evil")), "custom_ops"),
    ("absolute", model(node("Relu"), weights=[outside("/etc/shadow")]), "external_data"),
    ("above", model(node("Relu"), weights=[outside("../w.bin")]), "external_data"),
    ("the long way", model(node("Relu"), weights=[outside("./w.bin")]), "external_data"),
    ("not listed", model(node("Relu"), weights=[outside("other.bin")]), "external_data"),
    ("memory", model(node("Relu"), weights=[outside("*/_ORT_MEM_ADDR_/*")]), "external_data"),
    ("nothing", model(node("Relu"), weights=[outside("")]), "external_data"),
]


@pytest.mark.parametrize(("words", "made", "code"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_was_not_declared_is_refused(tmp_path: Path, words: str, made: onnx.ModelProto, code: str) -> None:
    del words
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(LoadError) as refused:
        scan.check(str(path), FILES, compiled=False, custom=())
    assert refused.value.code == code
    if code != "external_data":
        scan.check(str(path), FILES, compiled=True, custom=("evil",))


def test_what_is_in_the_bundle_is_not(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(node("Relu"), weights=[outside("w.bin")]).SerializeToString())
    scan.check(str(path), FILES, compiled=False, custom=())


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello, world", b"\x3a\xff\xff\xff\xff\x0f", b"\x0b", b"ORTM" * 9])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(LoadError, match="is no ONNX model"):
        scan.check(str(path), FILES, compiled=False, custom=())


def _length(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _length(value >> 7)


def test_depth_and_names_are_bounded() -> None:
    deep = b""
    for _ in range(40):  # a graph in an attribute of a node of a graph
        for number in (6, 5, 1):
            deep = bytes([number << 3 | 2]) + _length(len(deep)) + deep
    with pytest.raises(MalformedError, match="nested deeper"):
        scan.scan(bytes([7 << 3 | 2]) + _length(len(deep)) + deep)
    with pytest.raises(MalformedError, match="a name of"):
        scan.scan(model(node("x" * 5000)).SerializeToString())
    many = model(*(node(f"Op{n}") for n in range(scan.NAMES_MAX + 1)))
    with pytest.raises(MalformedError, match="different names"):
        scan.scan(many.SerializeToString())


# --- beside the onnx library --------------------------------------------------------------------------------------


def _text(name: str | bytes) -> str:
    """What is no UTF-8 comes as bytes."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def _graphs(found: Found, one: Any) -> None:
    tensors = [*getattr(one, "initializer", ())]
    for each in one.node:
        found.operators.add((_text(each.domain), _text(each.op_type)))
        for attribute in each.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                _graphs(found, inner)
    for tensor in tensors:
        found.external |= {_text(entry.value) for entry in tensor.external_data if entry.key == "location"}


def as_onnx_sees_it(data: bytes) -> Found | None:
    try:
        made = onnx.load_model_from_string(data)
    except Exception:  # noqa: BLE001  # the parser's own errors
        return None
    found = Found(opsets={one.domain: one.version for one in made.opset_import})
    for part in (made.graph, *made.functions):
        _graphs(found, part)
    return found


def seeds() -> Iterator[bytes]:
    yield from (made.SerializeToString() for made in HIDING_PLACES.values())
    yield from (made.SerializeToString() for _, made, _ in REFUSED)


SEEDS = tuple(seeds())
NODES = st.builds(node, st.sampled_from(["Relu", "EPContext", "Evil"]), st.sampled_from(["", "evil", "com.microsoft"]))


@given(st.lists(NODES, min_size=1, max_size=5), st.lists(st.text(max_size=5).map(outside), max_size=3))
def test_a_model_is_seen_as_onnx_sees_it(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> None:
    data = model(*nodes, node("If", then_branch=graph(nodes, weights))).SerializeToString()
    found, theirs = scan.scan(data), as_onnx_sees_it(data)
    assert theirs is not None
    assert (found.operators, found.external) == (theirs.operators, theirs.external)


@example(b"", 0, 0, b"")
@given(st.sampled_from(SEEDS), st.integers(0, 400), st.integers(0, 8), st.binary(max_size=8))
def test_of_a_damaged_file_it_sees_at_least_what_onnx_sees(data: bytes, at: int, cut: int, new: bytes) -> None:
    damaged = data[: at % (len(data) + 1)] + new + data[at % (len(data) + 1) + cut :]
    try:
        found = scan.scan(damaged)
    except MalformedError:
        return
    theirs = as_onnx_sees_it(damaged)
    if theirs is not None:
        assert theirs.operators <= found.operators
        assert theirs.external <= found.external


@given(st.binary(max_size=300))
def test_any_bytes_end_in_an_answer(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        scan.scan(data)


def test_a_model_of_the_tests_is_seen_whole(tmp_path: Path) -> None:
    models.make_model(tmp_path / "m.onnx", 2.0, nan_on=1.0, slow=1)
    found = scan.scan((tmp_path / "m.onnx").read_bytes())
    assert {operator for _, operator in found.operators} >= {"Mul", "Where", "Loop", "MatMul"}
