"""Failures that a worker does not get over: it ends, so that another takes over, and its host goes on.

Rules of the file:
- A lost GPU context stays lost for the process: every later call fails too (CUDA's sticky errors). Only a new process
  has a new one.
- Memory that was refused is a failure of that request alone, unless it was little that was asked for: a process that
  holds nearly all it may has leaked, and would refuse everybody.
"""

from __future__ import annotations

import gc
import re
import resource

EXIT = 70
LEAKED = 0.75  # of what the process may hold, when nothing but the model should be in it
MIB = 2**20

# As ONNX Runtime, TensorRT and CUDA say it; numbers of cudaError_t that end a context (driver_types.h).
GPU_FAULT = re.compile(
    r"illegal memory access|device-side assert|unspecified launch failure|misaligned address|uncorrectable ECC"
    r"|context is destroyed|hardware stack error|illegal instruction|GPU is lost|Xid"
    r"|cudaError(?:IllegalAddress|Assert|LaunchFailure|ECCUncorrectable|HardwareStackError|MisalignedAddress)"
    r"|CUDA (?:failure|error)[: ]+(?:46|214|700|702|710|714|715|716|717|718|719|721)\b"
)
WANT = re.compile(r"bad_alloc|[Ff]ailed to allocate memory|Cannot allocate memory")


def why(failure: BaseException) -> str:
    """Why the process should end after this; empty when it should not."""
    text = f"{type(failure).__name__}: {failure}"
    if GPU_FAULT.search(text):
        return f"gpu_fault: {text}"[:500]
    if isinstance(failure, MemoryError) or WANT.search(text):
        gc.collect()
        held, limit = held_bytes(), resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit != resource.RLIM_INFINITY and held > LEAKED * limit:
            return f"out_of_memory: MemoryError: {held // MIB} MiB of {limit // MIB} MiB are held between requests"
    return ""


def held_bytes(status: str = "/proc/self/status") -> int:
    """What RLIMIT_DATA counts (VmData)."""
    with open(status, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
