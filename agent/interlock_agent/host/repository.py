"""A model's folder in Triton's repository: a version folder for each release that is live or was, and `config.pbtxt`.

Rules of the file:
- A version folder's number is the release's generation. It comes into being by a rename, complete and durable, and is
  never written to afterwards: Triton maps what is in it.
- Files are hard links to the slot's where the file system allows it, else copies.
- A bundle brings data, never commands. Triton runs what it finds under some names (`model.py`, `libtriton_*.so`): a
  release that has such a file is refused. They come from the owner's template alone.
- What Interlock has not written is neither changed nor removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlock_shared import durable

CONFIG = "config.pbtxt"
MARK = ".interlock.json"  # in a version folder of ours: what it was made of
HEADER = "# Written by Interlock at each switch; change the template instead.\n"
MAX_SEAL_BYTES = 16 * 1024 * 1024
MAX_CONFIG_BYTES = 1024 * 1024
_RUN = re.compile(r"(?i).*\.(py|pyc|so|so\..*|dll|sh)|triton_python_backend_stub|libtriton_.*")
_POLICY = re.compile(r"(?m)^\s*version_policy\b")
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)


@dataclass(frozen=True)
class Sealed:
    """A release in its slot."""

    folder: Path
    generation: int
    manifest: str
    serve: dict[str, Any]
    files: tuple[str, ...]  # what Triton is given: all but the golden data


def sealed(folder: str) -> Sealed:
    """What the seal of a slot says. Blocks. Raises OSError, ValueError."""
    with (Path(folder) / ".interlock" / "seal.json").open("rb") as file:
        seal = json.loads(file.read(MAX_SEAL_BYTES))
    try:
        golden = (seal.get("golden") or {}).get("file")
        files = tuple(str(entry["name"]) for entry in seal["files"] if entry["name"] != golden)
        found = Sealed(Path(folder), int(seal["generation"]), str(seal["manifest_sha256"]), dict(seal["serve"]), files)
    except (KeyError, TypeError) as broken:
        raise ValueError(f"{folder}: the seal has no {broken}") from None
    for name in found.files:
        if "/" in name or name in ("", ".", "..", MARK):
            raise ValueError(f"{folder}: {name!r} is no name of a file")
        if _RUN.fullmatch(name):
            raise ValueError(f"the release has {name}, which Triton could run: that is the owner's to bring")
    return found


class ModelFolder:
    """`<repository>/<name>`. Methods block, and raise OSError, or ValueError with a sentence for people."""

    def __init__(self, repository: str, name: str, template: str) -> None:
        if not Path(repository).is_dir():
            raise ValueError(f"{repository}: no such folder; it is Triton's --model-repository")
        self._folder = Path(repository) / name
        self._template = Path(template) if template else None

    def put(self, release: Sealed, still: Callable[[], object]) -> None:
        """The release's version folder, and the configuration that names it alone. `still` raises when it is too late
        to change anything."""
        configuration = self._configuration(release)
        config = self._folder / CONFIG
        if config.exists() and not config.read_bytes().startswith(HEADER.encode()):
            raise ValueError(f"{config} is not Interlock's; move it to the folder that `template` names")
        durable.make_folder(self._folder)
        self._sweep()
        mark = {"manifest": release.manifest, "template": self._template_digest()}
        version = self._folder / str(release.generation)
        if self._mark(version) != mark:
            self._make(version, release, mark, still)
        if not config.exists() or config.read_bytes() != configuration:
            still()
            durable.replace_file(config, configuration, 0o644)

    def _make(self, version: Path, release: Sealed, mark: dict[str, str], still: Callable[[], object]) -> None:
        if version.exists() and self._mark(version) is None:
            raise ValueError(f"{version} is not Interlock's, and has the number of the release")
        making = self._folder / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(6)}"
        making.mkdir(mode=0o755)
        try:
            for name in release.files:
                still()
                _place(release.folder / name, making / name)
            for path in self._template_files():
                if (making / path.name).exists():
                    raise ValueError(f"release and template both have {path.name}")
                shutil.copyfile(path, making / path.name)
            (making / MARK).write_text(json.dumps(mark))
            if sealed(str(release.folder)) != release:
                raise ValueError(f"{release.folder} was replaced meanwhile")
            durable.sync_tree(making)
            still()
            if version.exists():
                _remove(version)
            durable.rename_folder(making, version)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise

    def keep(self, generation: int) -> None:
        """Remove the version folders of ours but that one; all with 0."""
        for version in self._versions():
            if version.name != str(generation):
                _remove(version)

    def forget(self) -> None:
        """Nothing is to be served: a server that starts finds nothing of ours."""
        if not self._folder.is_dir():
            return
        config = self._folder / CONFIG
        if config.exists() and config.read_bytes().startswith(HEADER.encode()):
            durable.remove(config)
        self._sweep()
        self.keep(0)

    def _versions(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if path.name.isdigit() and self._mark(path) is not None]

    def _sweep(self) -> None:
        """What a power cut, or an end of the host, has left half made."""
        for path in self._folder.glob(f"{durable.TEMPORARY_PREFIX}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @staticmethod
    def _mark(version: Path) -> Any:
        try:
            return json.loads((version / MARK).read_bytes())
        except (OSError, ValueError):
            return None

    # --- the owner's template ---------------------------------------------------------------------------------------

    def _template_files(self) -> list[Path]:
        if self._template is None:
            return []
        if not self._template.is_dir():
            raise ValueError(f"{self._template}: no such folder; it is the unit's triton.template")
        return sorted(path for path in self._template.iterdir() if path.name != CONFIG and path.is_file())

    def _template_digest(self) -> str:
        found = hashlib.sha256()
        for path in self._template_files():
            found.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    found.update(part)
        return found.hexdigest()

    def _configuration(self, release: Sealed) -> bytes:
        given = self._template / CONFIG if self._template else None
        if given is not None and given.exists():
            text = given.read_bytes()[:MAX_CONFIG_BYTES].decode()
            if _POLICY.search(text):
                raise ValueError(f"{given}: version_policy is Interlock's to write")
        else:
            text = generated(self._folder.name, release.serve)
        policy = f"version_policy: {{ specific: {{ versions: [ {release.generation} ] }} }}\n"
        return f"{HEADER}{text.rstrip()}\n{policy}".encode()


def generated(name: str, serve: dict[str, Any]) -> str:
    """`config.pbtxt` of an ONNX model, from the signature; Triton completes what is not there. Raises ValueError for
    what only the owner can know."""
    if serve.get("runtime") != "onnxruntime":
        raise ValueError(f"a model of runtime {serve.get('runtime')} needs a template with a {CONFIG}")
    lines = [f"name: {_text(name)}", 'backend: "onnxruntime"', f"default_model_filename: {_text(serve['file'])}"]
    tensors = [(kind, one) for kind in ("input", "output") for one in serve[f"{kind}s"]]
    if all(one["shape"] for _, one in tensors):  # Triton knows no tensor without a dimension
        for kind, one in tensors:
            dtype = "STRING" if one["dtype"] == "BYTES" else one["dtype"]
            dims = ", ".join(str(size) for size in one["shape"])
            lines.append(f"{kind} [ {{ name: {_text(one['name'])} data_type: TYPE_{dtype} dims: [ {dims} ] }} ]")
    return "\n".join([*lines, "max_batch_size: 0"])


def _text(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _place(source: Path, target: Path) -> None:
    """A hard link, else a copy."""
    if not stat.S_ISREG(source.lstat().st_mode):
        raise ValueError(f"{source} is no file")
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as refused:
        if refused.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target, follow_symlinks=False)


def _remove(version: Path) -> None:
    """At once for whoever looks: its name goes first."""
    gone = version.parent / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(6)}"
    with contextlib.suppress(FileNotFoundError):
        durable.rename_folder(version, gone)
        shutil.rmtree(gone, ignore_errors=True)
