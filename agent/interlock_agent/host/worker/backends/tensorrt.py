"""TensorRT as a backend: an engine that was built elsewhere, for this very device, or one that is built here from ONNX.

Rules of the file:
- An engine that is built here lies where `engines` says, under a key of all that it depends on, and is replaced whole.
- The first axis may be dynamic, from one item to the owner's `max_batch`; another may not.
- Requests are run by several lanes: a context, a stream and memory on the device each, which grows and is kept.
- What CUDA says is raised as it says it: a lost context ends the process (`fatal`).
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from interlock_agent.host.worker.backends import cuda
from interlock_agent.host.worker.errors import BadRequest, LoadError
from interlock_agent.host.worker.tensors import DTYPES

PLATFORM = "tensorrt_plan"
ENGINE, TIMING = "model.plan", "timing.cache"
LANES = 2
MIB = 2**20

_NAMES = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "BOOL": "BOOL",
}


def prebuilt(path: str) -> bool:
    """Whether the file is an engine, not ONNX."""
    return not path.endswith(".onnx")


class Session:
    """A loaded engine. Raises LoadError when it cannot be opened, or built."""

    runtime = f"tensorrt {trt.__version__}"
    platform = PLATFORM
    build = ""
    runs = True
    on_cpu = False

    @staticmethod
    def compiles(options: dict[str, Any]) -> bool:
        """Whether it will build an engine on the device."""
        return not prebuilt(str(options["serve"]["file"]))

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._said = options.get("tensorrt") or {}
        data = Path(path).read_bytes() if prebuilt(path) else self._built(path, options)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine(data)
        if self._engine is None:
            raise LoadError("load_failed", "tensorrt: the engine is not for this TensorRT, GPU or driver")
        self.providers, self.fell_back = ["TensorRT"], False
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        given = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.inputs = [self._described(name) for name in given]
        self.outputs = [self._described(name) for name in names if name not in given]
        try:
            device = cuda.Cuda(cuda.load())
            self._lanes: queue.LifoQueue[Lane] = queue.LifoQueue()
            for _ in range(max(1, int(options.get("concurrency") or LANES))):
                self._lanes.put(Lane(device, self._engine))
        except (OSError, cuda.CudaError) as failure:
            raise LoadError("load_failed", f"tensorrt: {failure}") from None

    def _described(self, name: str) -> dict[str, Any]:
        kind = _NAMES.get(self._engine.get_tensor_dtype(name).name)
        if kind is None:
            raise LoadError("load_failed", f"{name}: {self._engine.get_tensor_dtype(name)} cannot be served")
        return {"name": name, "dtype": kind, "shape": list(self._engine.get_tensor_shape(name))}

    def _built(self, path: str, options: dict[str, Any]) -> bytes:
        """The engine that lies there, or a new one."""
        folder, key = options["engines"]
        place, timing = Path(folder, key, ENGINE), Path(folder, TIMING)
        if place.exists():
            return place.read_bytes()
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(path):
            words = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise LoadError("load_failed", f"tensorrt: {words}"[:2000])
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(self._said.get("workspace_mib") or 1024) * MIB)
        if self._said.get("fp16"):
            config.set_flag(trt.BuilderFlag.FP16)
        config.add_optimization_profile(self._profile(builder, network))
        cache = config.create_timing_cache(timing.read_bytes() if timing.exists() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
        made = builder.build_serialized_network(network, config)
        if made is None:
            raise LoadError("load_failed", "tensorrt: no engine could be built; the worker's log says why")
        _replace(place, bytes(made))
        _replace(timing, bytes(config.get_timing_cache().serialize()))
        return bytes(made)

    def _profile(self, builder: Any, network: Any) -> Any:
        """From one item to the owner's `max_batch`, best at `opt_batch`."""
        most = int(self._said.get("max_batch") or 1)
        best = min(most, int(self._said.get("opt_batch") or 1))
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = list(tensor.shape)
            if -1 in shape[1:]:
                message = f"tensorrt: {tensor.name} is {shape}: only the first axis may be dynamic"
                raise LoadError("load_failed", message)
            if shape[:1] == [-1]:
                profile.set_shape(tensor.name, *([size, *shape[1:]] for size in (1, best, most)))
        return profile

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs named. Raises BadRequest for shapes that the engine was not built for, CudaError."""
        lane = self._lanes.get()
        try:
            return lane.run(names, feeds, self.outputs)
        finally:
            self._lanes.put(lane)


class Lane:
    """One request at a time."""

    def __init__(self, device: Any, engine: Any) -> None:
        self._device, self._context, self._stream = device, engine.create_execution_context(), device.stream()
        self._memory: dict[str, tuple[int, int]] = {}  # tensor -> address and size on the device

    def run(self, names: list[str], feeds: dict[str, Any], outputs: list[dict[str, Any]]) -> list[Any]:
        """As Session's."""
        context, stream = self._context, self._stream
        kept = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in kept.items():
            if not context.set_input_shape(name, array.shape):
                raise BadRequest(400, "invalid_argument", f"{name}: the engine was not built for {list(array.shape)}")
            self._device.copy(self._place(name, array.nbytes), array.ctypes.data, array.nbytes, cuda.TO_DEVICE, stream)
        found = {}
        for entry in outputs:
            shape = tuple(context.get_tensor_shape(entry["name"]))
            if -1 in shape:
                raise BadRequest(400, "invalid_argument", f"{entry['name']}: its shape depends on the data")
            array = found[entry["name"]] = np.empty(shape, DTYPES[entry["dtype"]])
            self._place(entry["name"], array.nbytes)
        if not context.execute_async_v3(stream):
            raise RuntimeError("tensorrt: the engine was not run")
        for name in names:
            array = found[name]
            self._device.copy(array.ctypes.data, self._memory[name][0], array.nbytes, cuda.TO_HOST, stream)
        self._device.wait(stream)
        return [found[name] for name in names]

    def _place(self, name: str, size: int) -> int:
        """Memory for a tensor, told to the context."""
        address, has = self._memory.get(name, (0, 0))
        if has < max(1, size):
            if address:
                del self._memory[name]
                self._device.free(address)
            address = self._device.allocate(max(1, size))
            self._memory[name] = (address, max(1, size))
        self._context.set_tensor_address(name, address)
        return address


def _replace(path: Path, data: bytes) -> None:
    """A derived file: whole or not there; a power cut may lose it."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)
