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

ILLEGAL, STREAM = 700, 7


class Cudart:
    """CUDA's runtime: device memory is host memory that only these calls may touch."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.freed = 0
        self.broken = 0  # every call fails with it: a sticky error
        self.cudaGetErrorString = _Function(lambda code: b"an illegal memory access was encountered")

    def cudaStreamCreate(self, into: Any) -> int:  # noqa: N802 - CUDA's name
        into._obj.value = STREAM
        return self.broken

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        return self.broken if stream.value == STREAM else 400

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


_INPUT, _OUTPUT = "in", "out"
_FLOAT = types.SimpleNamespace(name="FLOAT")


class _Logger:
    ERROR = 1

    def __init__(self, level: int) -> None:
        self.level = level


class _Context:
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
        assert stream == STREAM
        count = int(np.prod(self._shapes["x"]))
        kind = ctypes.POINTER(ctypes.c_float)
        x, y = (np.ctypeslib.as_array(ctypes.cast(self._addresses[n], kind), (count,)) for n in "xy")
        y[:] = x * self._engine.factor
        return True


class _Engine:
    num_io_tensors = 2

    def __init__(self, data: dict[str, Any]) -> None:
        self.factor, self.profile = data["factor"], data["profile"]

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return _INPUT if name == "x" else _OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return _FLOAT

    def get_tensor_shape(self, name: str) -> Any:
        return (-1, 4)

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Runtime:
    def __init__(self, logger: _Logger) -> None:
        assert logger.level == _Logger.ERROR

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        try:
            return _Engine(json.loads(data))
        except ValueError:
            return None


def module() -> types.ModuleType:
    """A module `tensorrt`. `built`: the configurations that engines were built with."""
    trt = types.ModuleType("tensorrt")
    found: Any = trt
    found.__version__, found.built = "10.3.0", []
    found.Logger, found.Runtime = _Logger, _Runtime
    found.TensorIOMode = types.SimpleNamespace(INPUT=_INPUT, OUTPUT=_OUTPUT)
    found.NetworkDefinitionCreationFlag = types.SimpleNamespace(EXPLICIT_BATCH=0)
    found.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    found.BuilderFlag = types.SimpleNamespace(FP16="fp16")
    found.Builder, found.OnnxParser = lambda logger: _Builder(found.built), _Parser
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


class _Network:
    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.factor = 0.0

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (low, best, high)


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"timed "


class _Config:
    def __init__(self) -> None:
        self.flags: list[str] = []

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pool = (pool, size)

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def add_optimization_profile(self, profile: _Profile) -> None:
        self.profile = profile

    def create_timing_cache(self, data: bytes) -> _Cache:
        return _Cache(data)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.cache = cache

    def get_timing_cache(self) -> _Cache:
        return self.cache


class _Builder:
    def __init__(self, built: list[Any]) -> None:
        self._built = built

    def create_network(self, flags: int) -> _Network:
        assert flags == 1
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes:
        self._built.append(config)
        return json.dumps({"factor": network.factor, "profile": config.profile.shapes.get("x")}).encode()
