"""After which failures a worker ends itself."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from interlock_agent.host.worker import fatal


class FailError(Exception):
    """As a runtime's."""


GPU = [
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=x ; expr=cudaStreamSynchronize",
    "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; CUDA error: device-side assert triggered",
    "CUDA failure 719: unspecified launch failure ; GPU=0",
    "[TRT] Error Code 1: Cuda Runtime (uncorrectable ECC error encountered)",
    "cudaErrorIllegalAddress",
]
OTHER = [
    "CUDA failure 2: out of memory ; GPU=0",  # that request's; the context lives
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x",
    "CUDA failure 7000: of another kind",
]


@pytest.mark.parametrize("text", GPU)
def test_a_lost_context_ends_the_worker(text: str) -> None:
    assert fatal.why(FailError(text)).startswith("gpu_fault: FailError")


@pytest.mark.parametrize("text", OTHER)
def test_other_failures_do_not(text: str) -> None:
    assert fatal.why(FailError(text)) == ""


@pytest.mark.parametrize("failure", [MemoryError(), FailError("std::bad_alloc")])
@pytest.mark.parametrize(("share", "ends"), [(0.9, True), (0.5, False)])
def test_refused_memory_ends_what_holds_nearly_all_it_may(
    failure: Exception, share: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1000 << 20, resource.RLIM_INFINITY))
    monkeypatch.setattr(fatal, "held_bytes", lambda: int(share * (1000 << 20)))
    assert bool(fatal.why(failure)) is ends
    if ends:
        assert "900 MiB of 1000 MiB" in fatal.why(failure)


def test_without_a_limit_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    assert fatal.why(MemoryError()) == ""


def test_what_the_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:  9 kB\nVmData:\t    12 kB\n")
    (tmp_path / "none").write_text("Name: x\n")
    assert (fatal.held_bytes(str(tmp_path / "status")), fatal.held_bytes(str(tmp_path / "none"))) == (12288, 0)
    assert fatal.held_bytes() > 1 << 20
