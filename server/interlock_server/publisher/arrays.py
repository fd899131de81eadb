"""What is in an `.npz`, without reading the arrays themselves."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interlock_shared.errors import Invalid


@dataclass(frozen=True)
class Header:
    """Type and shape of one array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def headers(path: Path) -> dict[str, Header]:
    """Every array of an `.npz` by name. Raises Invalid (`invalid_golden`)."""
    found: dict[str, Header] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    raise ValueError(f"{entry.filename} is no array")
                with archive.open(entry) as file:
                    found[entry.filename.removesuffix(".npy")] = _header(file)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as bad:
        raise Invalid(f"{path.name}: not an .npz file: {bad}", code="invalid_golden", field="golden.file") from None
    return found


def _header(file: Any) -> Header:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"array format {version}")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return Header(dtype, tuple(int(axis) for axis in shape))
