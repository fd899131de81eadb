"""Where a runtime may keep what it compiles from a model, under a key that is ours.

ONNX Runtime names a TensorRT engine after the model's file, its inputs and its nodes' outputs, and after neither
weights nor shapes: a release with other weights under the same names would go on serving the old ones. So each engine
lies in a folder beside the seal that is named by all it depends on, and no other is ever offered to the runtime.

Rules of the file:
- Standard library only; what a device does not tell is left out of the key, and nothing is guessed.
- The cache is derived: it may be gone, and is then made again. A folder of another key is removed once what replaced it
  is started to serve; not while it is judged, since other forms' engines lie in the same folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

SCHEMA = "interlock.engine-key/1"
FOLDER = "engines"  # under `.interlock/`
PREFIX_CHARS = 16  # of the key, before the names that the runtime gives

# Provider -> its options that name the cache, each made of the folder and the prefix.
_CACHES: dict[str, dict[str, str]] = {
    "TensorrtExecutionProvider": {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "{folder}",
        "trt_engine_cache_prefix": "{prefix}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "{timing}",
    },
    "NvTensorRTRTXExecutionProvider": {"nv_runtime_cache_path": "{folder}"},
}


def compiles(providers: list[str]) -> bool:
    """Whether one of the providers makes engines."""
    return any(name in _CACHES for name in providers)


def key(seal: dict[str, Any], options: dict[str, Any], facts: dict[str, str]) -> str:
    """SHA-256, hex, over what an engine depends on: every byte of the release but its golden data (weights may lie in
    files beside the model), how it is opened, and the device with its libraries."""
    golden = (seal.get("golden") or {}).get("file")
    files = [
        [entry["name"], [[segment["sha256"], segment["size"]] for segment in entry["segments"]]]
        for entry in seal["files"]
        if entry["name"] != golden
    ]
    document = {
        "schema": SCHEMA,
        "model": seal["serve"]["file"],
        "opened_by": seal["serve"]["runtime"],
        "files": sorted(files),
        "inputs": seal["serve"]["inputs"],
        "outputs": seal["serve"]["outputs"],
        "providers": list(options.get("providers") or ()),
        "provider_options": options.get("provider_options") or {},
        "tensorrt": options.get("tensorrt") or {},
        "threads": int(options.get("threads") or 1),
        "facts": facts,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def provider_options(provider: str, folder: str, name: str) -> dict[str, str]:
    """How a provider is told where its engines of that key lie; empty for one that makes none."""
    places = {"folder": f"{folder}/{name}", "prefix": name[:PREFIX_CHARS], "timing": folder}
    return {option: value.format(**places) for option, value in _CACHES.get(provider, {}).items()}


def make_folder(folder: str, name: str) -> bool:
    """For a key; whether engines were there already. Raises OSError."""
    os.makedirs(f"{folder}/{name}", mode=0o755, exist_ok=True)
    return bool(os.listdir(f"{folder}/{name}"))


def remove_others(folder: str, name: str) -> None:
    """Engines of other keys: of what this release was, or where."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False) and entry.name != name and re.fullmatch("[0-9a-f]{64}", entry.name):
            shutil.rmtree(entry.path, ignore_errors=True)


# --- what the device tells ------------------------------------------------------------------------------------------


def facts(runtime: str, build: str = "") -> dict[str, str]:
    """Of this device, as far as it tells: runtime and how it was built, TensorRT, CUDA, driver, L4T, GPU."""
    found = {
        "runtime": runtime,
        "build": build,
        "tensorrt": _tensorrt(),
        "driver": _first_line("/proc/driver/nvidia/version"),
        "l4t": _first_line("/etc/nv_tegra_release"),
        **_cuda(),
    }
    return {name: value for name, value in found.items() if value}


def _first_line(path: str) -> str:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _library(*names: str) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _tensorrt() -> str:
    """The whole version, not only what the library's file name says (`getInferLibVersion` and its build number)."""
    library = _library("libnvinfer.so.10", "libnvinfer.so.11", "libnvinfer.so.8", "libnvinfer.so")
    parts = []
    for name in ("getInferLibVersion", "getInferLibBuildVersion"):
        function = getattr(library, name, None)
        if function is not None:
            function.restype = ctypes.c_int32
            parts.append(str(function()))
    return ".".join(parts)


def _cuda() -> dict[str, str]:
    """From the driver's library (cuda.h): its CUDA version, and the first device's name and compute capability."""
    library = _library("libcuda.so.1")
    if library is None or library.cuInit(0) != 0:
        return {}
    found: dict[str, str] = {}
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["cuda"] = str(number.value)
    device = ctypes.c_int(0)
    if library.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return found
    name = ctypes.create_string_buffer(256)
    if library.cuDeviceGetName(name, len(name), device) == 0:
        found["gpu"] = name.value.decode(errors="replace")
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    attributes = ((75, major), (76, minor))  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    if all(library.cuDeviceGetAttribute(ctypes.byref(into), which, device) == 0 for which, into in attributes):
        found["compute_capability"] = f"{major.value}.{minor.value}"
    return found
