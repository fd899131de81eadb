"""What of CUDA's runtime a backend needs, through `ctypes`: a Jetson's Python has TensorRT, and no binding of CUDA.

https://docs.nvidia.com/cuda/cuda-runtime-api/: functions, and values of cudaMemcpyKind.
"""

from __future__ import annotations

import ctypes
from typing import Any

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
TO_DEVICE, TO_HOST = 1, 2


class CudaError(Exception):
    """`CUDA failure NUMBER: words`; which of them end the process, `fatal` knows."""


def load() -> Any:
    """The runtime's library. Raises OSError where there is none."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"none of {', '.join(LIBRARIES)} can be loaded")


class Cuda:
    """Memory and streams of the first device. Everything raises CudaError."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def _check(self, code: int) -> None:
        if code:
            words = self._library.cudaGetErrorString(code) or b""
            raise CudaError(f"CUDA failure {code}: {words.decode(errors='replace')}")

    def stream(self) -> int:
        """A new stream."""
        made = ctypes.c_void_p()
        self._check(self._library.cudaStreamCreate(ctypes.byref(made)))
        return made.value or 0

    def wait(self, stream: int) -> None:
        """Until all that was put into the stream is done."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)))

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the device."""
        made = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(made), ctypes.c_size_t(size)))
        return made.value or 0

    def free(self, address: int) -> None:
        """Give it back."""
        self._check(self._library.cudaFree(ctypes.c_void_p(address)))

    def copy(self, into: int, source: int, size: int, kind: int, stream: int) -> None:
        """Begin to copy; the memory on the host must stay until `wait`."""
        addresses = ctypes.c_void_p(into), ctypes.c_void_p(source)
        how = ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_void_p(stream)
        self._check(self._library.cudaMemcpyAsync(*addresses, *how))
