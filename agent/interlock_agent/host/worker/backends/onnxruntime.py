"""ONNX Runtime as a backend.

Rules of the file:
- A provider that was asked for and is not there is never replaced silently: fall-back to the CPU is switched off
  where the first provider is another one, and what the session runs on is read back.
- Engines that a provider compiles are kept where `engines` says, and taken from nowhere else.
- Threads are what the owner grants, and do not spin: several workers share the machine.
- BF16 goes in and out as its bits, since numpy has no such type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from interlock_agent.host.worker import engines
from interlock_agent.host.worker.errors import BadRequest, LoadError

PLATFORM = "onnxruntime_onnx"
CPU = "CPUExecutionProvider"
_BFLOAT16 = 16  # TensorProto.BFLOAT16
_DTYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}


class Session:
    """A loaded model. Raises LoadError when it cannot be opened as configured."""

    runtime = f"onnxruntime {ort.__version__}"
    platform = PLATFORM
    runs = True
    build = str(getattr(ort, "get_build_info", lambda: "")())

    @staticmethod
    def compiles(options: dict[str, Any]) -> bool:
        """Whether one of the providers makes engines."""
        return engines.compiles([str(name) for name in options.get("providers") or ()])

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        asked = [str(name) for name in options.get("providers") or [CPU]]
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, int(options.get("threads") or 1))
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        settings.add_session_config_entry("session.load_model_format", "ONNX")  # what was scanned is what is opened
        providers = asked
        if asked[0] != CPU:
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            providers = [name for name in asked if name != CPU]  # both at once is an error to the runtime
        missing = [name for name in providers if name not in ort.get_available_providers()]
        if missing:
            raise LoadError("load_failed", f"this runtime has no {', '.join(missing)}")
        try:
            told = [(name, _options(name, options)) for name in providers]
            # Its Python side would try again with other providers, of its own choice.
            self._session = ort.InferenceSession(path, settings, providers=told, enable_fallback=0)
        except Exception as failure:  # noqa: BLE001 - the runtime's errors have no common class
            where = f"on {', '.join(asked)}: " if asked[0] != CPU else ""
            raise LoadError("load_failed", f"onnxruntime: {where}{failure}"[:2000]) from None
        self.providers: list[str] = list(self._session.get_providers())
        self.fell_back = self.providers[: len(providers)] != providers or (asked[0] != CPU and self._on_cpu())
        self.on_cpu = asked[0] == CPU
        self.inputs = [_described(node) for node in self._session.get_inputs()]
        self.outputs = [_described(node) for node in self._session.get_outputs()]
        self._bits = {entry["name"] for entry in (*self.inputs, *self.outputs) if entry["dtype"] == "BF16"}
        texts = {entry["name"] for entry in self.inputs if entry["dtype"] == "BYTES"}
        if self._bits and (texts or not hasattr(ort.OrtValue, "ortvalue_from_numpy_with_onnx_type")):
            raise LoadError("load_failed", "this runtime takes BF16 not at all in Python, or not beside BYTES")
        texts |= {entry["name"] for entry in self.outputs if entry["dtype"] == "BYTES"}
        plain = self._session.run if self.on_cpu or texts else self._run_bound
        self._how: Callable[[list[str], dict[str, Any]], list[Any]] = self._run_bits if self._bits else plain

    def _on_cpu(self) -> bool:
        """Whether nodes were placed on the CPU although another provider was asked for."""
        look = getattr(self._session, "get_provider_graph_assignment_info", None)  # newer runtimes tell
        if look is None:
            return False  # with the fall-back switched off the session would not have been made
        try:
            return any(part.ep_name == CPU for part in look())
        except Exception:  # noqa: BLE001 - it was not recorded; the switch above holds
            return False

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs named. Raises BadRequest when the runtime calls the input invalid."""
        try:
            found: list[Any] = self._how(names, feeds)
        except Exception as failure:  # the runtime's errors have no common class; all but this one go on as they are
            if type(failure).__name__ == "InvalidArgument":
                raise BadRequest(400, "invalid_argument", f"{failure}"[:500]) from None
            raise
        return found

    def _run_bound(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """As `run`, with what goes to the device and comes back bound (IO binding): one copy each way, on the session's
        own stream, and no wait in between."""
        bound = self._session.io_binding()
        for name, array in feeds.items():
            bound.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            bound.bind_output(name)
        self._session.run_with_iobinding(bound)
        return list(bound.copy_outputs_to_cpu())

    def _run_bits(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """As `run`, through the runtime's own values; these have no way to numpy for BF16 but their address."""
        given = {}
        for name, array in feeds.items():
            whole = np.ascontiguousarray(array)
            if name in self._bits:
                given[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(whole, _BFLOAT16)
            else:
                given[name] = ort.OrtValue.ortvalue_from_numpy(whole)
        values = self._session.run_with_ort_values(names, given)
        return [_bits(v) if n in self._bits else v.numpy() for n, v in zip(names, values, strict=True)]


def _bits(value: Any) -> Any:
    """A copy: the value's memory ends with it."""
    array = np.empty(value.shape(), np.uint16)
    ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array


def _options(provider: str, options: dict[str, Any]) -> dict[str, str]:
    """The owner's options of a provider; where its engines lie is ours."""
    owner = (options.get("provider_options") or {}).get(provider) or {}
    cache = engines.provider_options(provider, *options["engines"]) if options.get("engines") else {}
    return {**{str(name): str(value) for name, value in owner.items()}, **cache}


def _described(node: Any) -> dict[str, Any]:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise LoadError("load_failed", f"{node.name}: {node.type} cannot be served")
    shape = [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape]
    return {"name": node.name, "dtype": dtype, "shape": shape}
