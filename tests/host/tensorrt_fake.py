"""A `tensorrt` and a CUDA runtime that do their work with numpy: the calls, their order and their errors, as the real
ones have them. An "engine" is JSON: the factor that `y = factor * x` multiplies by, and the shapes that it is for.
"""

from __future__ import annotations

import ctypes
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ILLEGAL = 700


class Library:
    """CUDA's runtime: device memory is host memory that only these calls may touch."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.freed = 0
        self.broken = 0  # every call fails with it: a sticky error
        self.cudaGetErrorString = _Function(lambda code: b"an illegal memory access was encountered")

    def cudaStreamCreate(self, into: Any) -> int:  # noqa: N802 - CUDA's name
        into._obj.value = 7
        return self.broken

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        return self.broken if stream.value == 7 else 400

    def cudaMalloc(self, into: Any, size: Any) -> int:  # noqa: N802
        held = ctypes.create_string_buffer(size.value)
        into._obj.value = ctypes.addressof(held)
        self.memory[into._obj.value] = held
        return self.broken

    def cudaFree(self, address: Any) -> int:  # noqa: N802
        del self.memory[address.value]
        self.freed += 1
        return self.broken

    def cudaMemcpyAsync(self, into: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:  # noqa: N802
        assert (into if kind.value == 1 else source).value in self.memory
        if not self.broken:
            ctypes.memmove(into.value, source.value, size.value)
        return self.broken


class _Function:
    """A function that takes a `restype`."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def module(library: Library) -> types.ModuleType:
    """A module `tensorrt`, whose engines run in that library's memory."""
    trt = types.ModuleType("tensorrt")
    found: Any = trt
    found.__version__ = "10.3.0"
    found.built = []
    mode, kind = types.SimpleNamespace(INPUT="in", OUTPUT="out"), types.SimpleNamespace(name="FLOAT")

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            self.level = level

    class Context:
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._shapes: dict[str, Any] = {}
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine.profile or ([1, 4],) * 3
            self._shapes[name] = tuple(shape)
            return low[0] <= shape[0] <= high[0] and list(shape[1:]) == low[1:]

        def get_tensor_shape(self, name: str) -> Any:
            return tuple(self._shapes["x"])

        def set_tensor_address(self, name: str, address: int) -> None:
            self._addresses[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 7
            count = int(np.prod(self._shapes["x"]))
            x, y = (
                np.ctypeslib.as_array(ctypes.cast(self._addresses[n], ctypes.POINTER(ctypes.c_float)), (count,))
                for n in "xy"
            )
            y[:] = x * self._engine.factor
            return True

    class Engine:
        num_io_tensors = 2

        def __init__(self, data: dict[str, Any]) -> None:
            self.factor, self.profile = data["factor"], data["profile"]

        def get_tensor_name(self, index: int) -> str:
            return "xy"[index]

        def get_tensor_mode(self, name: str) -> Any:
            return mode.INPUT if name == "x" else mode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return kind

        def get_tensor_shape(self, name: str) -> Any:
            return (-1, 4)

        def create_execution_context(self) -> Context:
            return Context(self)

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            assert logger.level == Logger.ERROR

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            try:
                return Engine(json.loads(data))
            except ValueError:
                return None

    found.Logger, found.Runtime, found.TensorIOMode = Logger, Runtime, mode
    found.NetworkDefinitionCreationFlag = types.SimpleNamespace(EXPLICIT_BATCH=0)
    found.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    found.BuilderFlag = types.SimpleNamespace(FP16="fp16")
    found.Builder, found.OnnxParser = _builder(found), _Parser
    return trt


class _Parser:
    """Reads the ONNX file."""

    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        try:
            model = onnx.load_from_string(Path(path).read_bytes())
        except Exception:  # noqa: BLE001 - protobuf's own
            return False
        self._network.factor = float(onnx.numpy_helper.to_array(model.graph.initializer[0]))
        for given in model.graph.input:
            shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in given.type.tensor_type.shape.dim)
            self._network.inputs.append(types.SimpleNamespace(name=given.name, shape=shape))
        return True

    def get_error(self, index: int) -> str:
        return "this is no ONNX"


def _builder(found: Any) -> Any:
    class Network:
        def __init__(self) -> None:
            self.inputs: list[Any] = []
            self.factor = 0.0

        @property
        def num_inputs(self) -> int:
            return len(self.inputs)

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            self.shapes[name] = (low, best, high)

    class Cache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> bytes:
            return self.data + b"timed "

    class Config:
        def __init__(self) -> None:
            self.flags: list[str] = []

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            self.pool = (pool, size)

        def set_flag(self, flag: str) -> None:
            self.flags.append(flag)

        def add_optimization_profile(self, profile: Profile) -> None:
            self.profile = profile

        def create_timing_cache(self, data: bytes) -> Cache:
            return Cache(data)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> None:
            assert not ignore_mismatch
            self.cache = cache

        def get_timing_cache(self) -> Cache:
            return self.cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Network:
            assert flags == 1
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            found.built.append(config)
            return json.dumps({"factor": network.factor, "profile": config.profile.shapes.get("x")}).encode()

    return Builder
