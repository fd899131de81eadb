"""Golden data at build time: what a device would stumble over is said here, on the engineer's machine.

Only the headers of the arrays are read (and the labels, which are small), so that memory stays flat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import ValidationError

from interlock_server.publisher import golden_labels
from interlock_server.publisher.arrays import Header, headers
from interlock_server.publisher.bundle_toml import GoldenEntry, Source
from interlock_shared.errors import Invalid, Unreachable
from interlock_shared.gates import Gates, Golden, Parity, check_gates
from interlock_shared.manifest import Signature, Tensor

KINDS = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


def settle(source: Source, entry: GoldenEntry, signature: Signature) -> Golden:
    """The manifest's entry, with the names that were left out. Raises Invalid with the line and the field."""
    fields = entry.model_dump()
    if entry.inputs is None:
        fields["inputs"] = {tensor.name: tensor.name for tensor in signature.inputs}
    if entry.slices is not None and not entry.slice_names:
        fields["slice_names"] = golden_labels.slice_names(source, entry.file, entry.slices)
    try:
        golden = Golden(**fields)
        if isinstance(source.recipe.gates, Gates):
            check_gates(source.recipe.gates, golden)
    except ValidationError as bad:
        problem = bad.errors()[0]
        source.refuse(("golden", *problem["loc"]), problem["msg"].removeprefix("Value error, "))
    except ValueError as bad:
        source.refuse(("gates",), str(bad).removeprefix("gates: "))
    return golden


def check(source: Source, golden: Golden, signature: Signature) -> int:
    """Arrays exist, agree in their number of items, and fit the signature; the number of items.

    Raises Invalid with the line and the field.
    """
    arrays = headers(source.folder / golden.file)
    inputs = {tensor.name: tensor for tensor in signature.inputs}
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    for name in [*golden.inputs, *inputs]:
        if name not in inputs:
            source.refuse(("golden", "inputs", name), f"the model has no input {name!r}")
        if name not in golden.inputs:
            source.refuse(("golden", "inputs"), f"input {name!r} has no array")
    for name in golden.expected:
        if name not in outputs:
            source.refuse(("golden", "expected", name), f"the model has no output {name!r}")
    for name, parity in golden.parity.items():
        if name not in outputs:
            source.refuse(("golden", "parity", name), f"the model has no output {name!r}")
        _check_parity(source, name, parity, outputs[name])
    if golden.label_output is not None and golden.label_output not in outputs:
        source.refuse(("golden", "label_output"), f"the model has no output {golden.label_output!r}")
    items: dict[str, int] = {}
    for side, named, tensors in (("inputs", golden.inputs, inputs), ("expected", golden.expected, outputs)):
        for name, array in named.items():
            header = _array(source, arrays, ("golden", side, name), array)
            _fits(source, ("golden", side, name), header, tensors[name])
            items[array] = header.shape[0]
    if golden.labels is not None:
        items[golden.labels] = _array(source, arrays, ("golden", "labels"), golden.labels).shape[0]
        golden_labels.check(source, golden, arrays[golden.labels], outputs[str(golden.label_output)])
    if golden.slices is not None:
        items[golden.slices] = _array(source, arrays, ("golden", "slices"), golden.slices).shape[0]
        golden_labels.check_slices(source, golden)
    if len(set(items.values())) > 1:
        source.refuse(("golden",), "arrays differ in their number of items: " + _listed(items))
    count = next(iter(items.values()))
    if count == 0:
        source.refuse(("golden", "file"), "there are no items in it")
    return count


def _listed(items: dict[str, int]) -> str:
    return ", ".join(f"{name} has {count}" for name, count in sorted(items.items()))


def _array(source: Source, arrays: dict[str, Header], path: tuple[str, ...], name: str) -> Header:
    if name not in arrays:
        source.refuse(path, f"there is no array {name!r} in {_file(source)}; it has {', '.join(sorted(arrays))}")
    if not arrays[name].shape:
        source.refuse(path, f"array {name!r} has no item axis")
    return arrays[name]


def _file(source: Source) -> str:
    return source.recipe.golden.file if source.recipe.golden else ""


def _fits(source: Source, path: tuple[str, ...], header: Header, tensor: Tensor) -> None:
    """One item is a row of the tensor's first axis, or, for a tensor of one axis fewer, the tensor itself."""
    kind = "SU" if tensor.dtype == "BYTES" else None
    if kind is None and header.dtype.name != KINDS.get(tensor.dtype) and tensor.dtype != "BF16":
        source.refuse(path, f"the array is {header.dtype.name}, {tensor.name} is {tensor.dtype}")
    if kind is not None and header.dtype.kind not in kind:
        source.refuse(path, f"the array is {header.dtype.name}, {tensor.name} is {tensor.dtype}")
    item = header.shape[1:]
    for wanted in (tensor.shape[1:] if tensor.shape else None, tensor.shape):
        if wanted is None or len(wanted) != len(item):
            continue
        if all(axis in {-1, size} for axis, size in zip(wanted, item, strict=True)):
            return
    source.refuse(path, f"the array has shape {list(header.shape)}, {tensor.name} has {list(tensor.shape)}")


def _check_parity(source: Source, name: str, parity: Parity, output: Tensor) -> None:
    if parity.agreement_min is None:
        return
    path, classes = ("golden", "parity", name, "top_k"), output.shape[-1] if output.shape else 1
    if len(output.shape) < 1 or output.dtype in {"BOOL", "BYTES"}:
        source.refuse(path, f"{name} has no numbers along a last axis")
    if 0 < classes <= parity.top_k:
        source.refuse(path, f"the best {parity.top_k} of {classes} are all of them")


def compare(source: Source, golden: Golden, file: str) -> dict[str, float]:
    """Run the model over the golden inputs: share of right answers by output. Raises Invalid, Unreachable."""
    try:
        import onnxruntime
    except ImportError:
        raise Unreachable("onnxruntime is not installed here: pip install onnxruntime", code="no_runtime") from None
    try:
        session = onnxruntime.InferenceSession(str(source.folder / file), providers=["CPUExecutionProvider"])
        with np.load(source.folder / golden.file, allow_pickle=False) as arrays:
            return _agreement(session, golden, {name: arrays[name] for name in _names(golden)})
    except Invalid:
        raise
    except Exception as bad:  # noqa: BLE001 - the runtime's errors have no base of their own
        raise Invalid(f"{file}: does not run over the golden data: {bad}", code="golden_failed") from None


def _names(golden: Golden) -> set[str]:
    return {*golden.inputs.values(), *golden.expected.values()} | ({golden.labels} if golden.labels else set())


def _batches(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(start + batch, count))


def _agreement(session: Any, golden: Golden, arrays: dict[str, Any]) -> dict[str, float]:
    outputs = list(dict.fromkeys([*golden.expected, *([golden.label_output] if golden.label_output else [])]))
    fixed = {one.name: one for one in session.get_inputs()}
    count = len(next(iter(arrays.values())))
    right: dict[str, int] = {f"expected {name}": 0 for name in golden.expected}
    if golden.labels and golden.metric == "top1":
        right[f"labels {golden.label_output}"] = 0
    single = any(len(one.shape) == arrays[golden.inputs[name]].ndim - 1 for name, one in fixed.items())
    for part in _batches(count, 1 if single else golden.batch):
        feed = {
            name: np.asarray(arrays[array][part][0])  # a number is an array of no axes
            if single and len(fixed[name].shape) < arrays[array].ndim
            else arrays[array][part]
            for name, array in golden.inputs.items()
        }
        answers = dict(zip(outputs, session.run(outputs, feed), strict=True))
        for name, array in golden.expected.items():
            wanted = arrays[array][part]
            rule = golden.parity.get(name, Parity(rtol=golden.rtol, atol=golden.atol))
            right[f"expected {name}"] += int(_near(answers[name].reshape(wanted.shape), wanted, rule).sum())
        if golden.labels and golden.label_output and golden.metric == "top1":
            chosen = answers[golden.label_output].reshape(len(arrays[golden.labels][part]), -1).argmax(axis=-1)
            right[f"labels {golden.label_output}"] += int((chosen == arrays[golden.labels][part]).sum())
    shares = {name: hits / count for name, hits in right.items()}
    for name, share in shares.items():
        rule = golden.parity.get(name.removeprefix("expected "), Parity(rtol=golden.rtol))
        enough = rule.agreement_min if rule.agreement_min is not None and not rule.by_value else 1.0
        if name.startswith("expected ") and share < enough:
            raise Invalid(f"golden: {name}: {share:.2%} of {count} items agree as asked", code="golden_failed")
    return shares


def _near(got: Any, wanted: Any, rule: Parity) -> Any:
    """Whether each item agrees with what is expected of it. The reference agrees with itself nearly exactly, so that
    the best of the last axis are compared by their places."""
    near = np.ones(len(wanted), bool)
    flat, goal = got.reshape(len(wanted), -1), wanted.reshape(len(wanted), -1)
    if rule.by_value:
        near &= np.isclose(flat, goal, rtol=rule.rtol or 0.0, atol=rule.atol or 0.0, equal_nan=True).all(axis=1)
    if rule.cosine_min is not None:
        mine, theirs = flat.astype(np.float64), goal.astype(np.float64)
        lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine = (mine * theirs).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
        near &= np.where(lengths > 0, cosine >= rule.cosine_min, (mine == theirs).all(axis=1))
    if rule.agreement_min is not None:
        best = (np.argsort(-one.astype(np.float64), axis=-1, kind="stable")[..., : rule.top_k] for one in (got, wanted))
        first, second = (np.sort(one, axis=-1).reshape(len(wanted), -1) for one in best)
        near &= (first == second).all(axis=1)
    return near
