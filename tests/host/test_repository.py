"""A model's folder in Triton's repository: complete or not there, never changed, and nothing a bundle would run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host.repository import CONFIG, HEADER, MARK, ModelFolder, generated, sealed
from tests.host import models

CONFIGURATION = 'backend: "python"\n'


class Shelf:
    """A repository, a template, and slots."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository, self.template = folder, folder / "models", folder / "template"
        self.repository.mkdir()
        self.template.mkdir()
        (self.template / CONFIG).write_text(CONFIGURATION)
        (self.template / "model.py").write_text("# runs it")
        self.model = self.repository / "detector"

    def slot(self, generation: int, scale: float = 1.0, files: dict[str, str] | None = None) -> str:
        slot = self.folder / f"slot-{generation}-{scale}"
        slot.mkdir()
        models.make_model(slot / "model.onnx", scale)
        for name, text in (files or {}).items():
            (slot / name).write_text(text)
        models.seal(slot, "detector", f"1.{generation}.0", generation)
        return str(slot)

    def put(self, slot: str, template: bool = True) -> None:
        ModelFolder(str(self.repository), "detector", str(self.template) if template else "").put(sealed(slot), int)

    def names(self, version: int) -> set[str]:
        return set(os.listdir(self.model / str(version)))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_version_is_the_releases_files_and_the_templates(shelf: Shelf) -> None:
    slot = shelf.slot(7, files={"labels.txt": "cat\n"})
    models.golden(Path(slot), 1.0)
    models.seal(Path(slot), "detector", "1.7.0", 7, golden={"file": "golden.npz"})
    shelf.put(slot)
    assert shelf.names(7) == {"model.onnx", "labels.txt", "model.py", MARK}, "golden data stay at home"
    assert (shelf.model / "7" / "model.onnx").samefile(Path(slot) / "model.onnx")
    text = (shelf.model / CONFIG).read_text()
    assert text == f"{HEADER}{CONFIGURATION}version_policy: {{ specific: {{ versions: [ 7 ] }} }}\n"
    assert os.stat(shelf.model / CONFIG).st_mode & 0o777 == 0o644, "Triton may be another user"


def test_on_another_file_system_it_is_a_copy(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    slot = shelf.slot(7)
    shelf.put(slot)
    copy = shelf.model / "7" / "model.onnx"
    assert copy.read_bytes() == (Path(slot) / "model.onnx").read_bytes()
    assert not copy.samefile(Path(slot) / "model.onnx")


def test_what_is_there_is_not_written_again_and_what_differs_is_replaced(shelf: Shelf) -> None:
    slot = shelf.slot(7)
    shelf.put(slot)
    before = os.stat(shelf.model / "7")
    shelf.put(slot)
    assert os.stat(shelf.model / "7").st_ino == before.st_ino
    (shelf.template / "model.py").write_text("# runs it better")
    shelf.put(slot)
    assert os.stat(shelf.model / "7").st_ino != before.st_ino
    assert (shelf.model / "7" / "model.py").read_text() == "# runs it better"
    shelf.put(shelf.slot(7, 2.0))  # an agent that has lost its memory counts from the start
    assert json.loads((shelf.model / "7" / MARK).read_text())["manifest"] != ""
    assert not list(shelf.model.glob(".tmp-*"))


@pytest.mark.parametrize(
    "name",
    ["model.py", "Model.PY", "libtriton_python.so", "libtriton_x", "op.so.1", "triton_python_backend_stub", "a.pyc"],
)
def test_a_release_with_a_file_that_triton_would_run_is_refused(shelf: Shelf, name: str) -> None:
    slot = shelf.slot(7, files={name: "evil"})
    with pytest.raises(ValueError, match="the owner's to bring"):
        shelf.put(slot)
    assert not shelf.model.exists()


@pytest.mark.parametrize("name", ["../model.onnx", "", "..", MARK])
def test_a_name_in_a_seal_is_never_a_path(shelf: Shelf, name: str) -> None:
    slot = shelf.slot(7)
    file = Path(slot) / ".interlock" / "seal.json"
    seal = json.loads(file.read_text())
    seal["files"][0]["name"] = name
    file.write_text(json.dumps(seal))
    with pytest.raises(ValueError, match="no name of a file"):
        shelf.put(slot)


def test_what_interlock_did_not_write_stays(shelf: Shelf) -> None:
    shelf.model.mkdir()
    (shelf.model / CONFIG).write_text('name: "mine"')
    with pytest.raises(ValueError, match="is not Interlock's"):
        shelf.put(shelf.slot(7))
    assert (shelf.model / CONFIG).read_text() == 'name: "mine"'
    (shelf.model / CONFIG).unlink()
    (shelf.model / "7").mkdir()
    with pytest.raises(ValueError, match="has the number of the release"):
        shelf.put(shelf.slot(7, 2.0))
    (shelf.model / "3").mkdir()
    shelf.put(shelf.slot(8))
    folder = ModelFolder(str(shelf.repository), "detector", str(shelf.template))
    folder.keep(8)
    folder.forget()
    assert set(os.listdir(shelf.model)) == {"3", "7"}


def test_what_a_cut_has_left_goes(shelf: Shelf) -> None:
    shelf.model.mkdir()
    (shelf.model / ".tmp-half").mkdir()
    (shelf.model / ".tmp-config").touch()
    shelf.put(shelf.slot(7))
    assert set(os.listdir(shelf.model)) == {"7", CONFIG}


def test_a_switch_whose_time_is_up_changes_nothing_more(shelf: Shelf) -> None:
    def late() -> None:
        raise TimeoutError("no time is left")

    with pytest.raises(TimeoutError):
        ModelFolder(str(shelf.repository), "detector", str(shelf.template)).put(sealed(shelf.slot(7)), late)
    assert os.listdir(shelf.model) == []


def test_a_slot_that_is_replaced_meanwhile_is_no_version(shelf: Shelf) -> None:
    slot = shelf.slot(7)
    release = sealed(slot)
    models.seal(Path(slot), "detector", "1.8.0", 8)
    with pytest.raises(ValueError, match="replaced meanwhile"):
        ModelFolder(str(shelf.repository), "detector", str(shelf.template)).put(release, int)
    assert os.listdir(shelf.model) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda s: (s.template / CONFIG).write_text("version_policy: { all {} }"), "Interlock's to write"),
        (lambda s: (s.template / "model.onnx").touch(), "both have model.onnx"),
        (lambda s: s.repository.rmdir(), "no such folder"),
    ],
)
def test_a_setting_that_does_not_fit_is_told(shelf: Shelf, spoil: Any, complaint: str) -> None:
    slot = shelf.slot(7)
    spoil(shelf)
    with pytest.raises(ValueError, match=complaint):
        shelf.put(slot)


def test_without_a_template_it_is_made_from_the_signature(shelf: Shelf) -> None:
    shelf.put(shelf.slot(7), template=False)
    assert (shelf.model / CONFIG).read_text() == (
        f'{HEADER}name: "detector"\n'
        'backend: "onnxruntime"\n'
        'default_model_filename: "model.onnx"\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]\n'
        "max_batch_size: 0\n"
        "version_policy: { specific: { versions: [ 7 ] } }\n"
    )
    assert shelf.names(7) == {"model.onnx", MARK}


def test_what_only_the_owner_can_know_needs_a_template() -> None:
    with pytest.raises(ValueError, match="needs a template"):
        generated("detector", {"runtime": "external"})
    text = {"name": 'a"b', "dtype": "BYTES", "shape": [1]}
    made = generated("detector", {"runtime": "onnxruntime", "file": "m.onnx", "inputs": [text], "outputs": [text]})
    assert 'name: "a\\"b" data_type: TYPE_STRING' in made
    scalar = {**text, "shape": []}
    made = generated("detector", {"runtime": "onnxruntime", "file": "m.onnx", "inputs": [scalar], "outputs": [text]})
    assert "input" not in made, "Triton knows no tensor without a dimension: it asks the model"
