"""What a worker holds now, of which its growth is judged: what it has taken itself, wherever the kernel keeps it."""

from __future__ import annotations

import mmap
from pathlib import Path

from interlock_agent.host.worker import golden

MIB = 2**20


def test_pages_of_a_file_that_are_read_again_are_no_growth(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"w" * (16 * MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = golden.resident_bytes()
        assert sum(mapped[offset] for offset in range(0, len(mapped), mmap.PAGESIZE)) > 0
        assert golden.resident_bytes() - before < 4 * MIB


def test_memory_that_it_takes_is_growth() -> None:
    before = golden.resident_bytes()
    with mmap.mmap(-1, 16 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:  # the heap may hold freed pages
        taken.write(b"t" * len(taken))
        assert golden.resident_bytes() - before > 12 * MIB


def test_what_the_kernel_has_put_into_swap_is_held_all_the_same(tmp_path: Path) -> None:
    status = "VmRSS:\t  5000 kB\nRssAnon:\t  3000 kB\nRssFile:\t  1900 kB\nRssShmem:\t   100 kB\nVmSwap:\t   700 kB\n"
    (tmp_path / "status").write_text(status)
    assert golden.resident_bytes(str(tmp_path / "status")) == (5000 - 1900 + 700) * 1024
    (tmp_path / "status").write_text("VmRSS:\t  5000 kB\n")
    assert golden.resident_bytes(str(tmp_path / "status")) == 5000 * 1024, "an older kernel tells no more"
