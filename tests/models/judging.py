"""The real gate on real bundles: `interlock-agent gate`, as a person would ask it, with figures picked out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.e2e.test_dry_run import packed
from tests.rig.fleet import BIN, run

ASKED_MAX = 3  # what `gate.inconclusive_max` is for: a machine that was too busy is asked again
BUDGET_S = 30.0

Json = dict[str, Any]


class Said(NamedTuple):
    """Exit code and verdict."""

    code: int
    verdict: Json

    @property
    def outcome(self) -> tuple[int, str, str]:
        """Exit code, outcome and reason."""
        return self.code, self.verdict["outcome"], self.verdict["reason"]

    @property
    def checks(self) -> dict[str, Json]:
        """The checks of the chosen variant, by name; of outputs, `parity OUTPUT`."""
        return checks_of(self.verdict)

    @property
    def variants(self) -> dict[str, Json]:
        """What was found of each variant."""
        return {one["variant"]: one for one in (self.verdict, *self.verdict["others"])}


def checks_of(result: Mapping[str, Any]) -> dict[str, Json]:
    """The checks of a verdict, or of one of its variants."""
    rows = [check for stage in result["stages"] for check in stage["checks"]]
    return {f"{row['check']} {row['detail'].get('output', '')}".strip(): row for row in rows}


class Judge:
    """A device's settings, and a folder for bundles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = folder / "agent.toml"
        device = f'[device]\nstate_dir = "{folder / "s"}"\nrun_dir = "{folder / "r"}"\n'
        self._config.write_text(f"{device}[defaults.gate]\nbudget_s = {BUDGET_S}\n")

    def release(
        self, text: str, models: Mapping[str, Path], arrays: Mapping[str, np.ndarray] | None = None, name: str = "r"
    ) -> Path:
        """A bundle of models by file name, and golden data."""
        folder = self.folder / name / "source"
        folder.mkdir(parents=True)
        for file, model in models.items():
            shutil.copy(model, folder / file)
        if arrays:
            np.savez_compressed(folder / "golden.npz", allow_pickle=False, **arrays)
        (folder / "bundle.toml").write_text(text)
        return packed(folder)

    def judge(self, candidate: Path, against: Path | None = None, more: Sequence[str] = ()) -> Said:
        """Ask; once more where the machine could not tell, as a device does."""
        words = ["gate", str(candidate), "--dry-run", "--json", "--config", str(self._config), *more]
        words += ["--against", str(against)] if against is not None else []
        for _ in range(ASKED_MAX):
            done = run([str(BIN / "interlock-agent"), *words], dict(os.environ), check=False)
            assert done.stdout, done.stderr
            said = Said(done.returncode, json.loads(done.stdout)["verdict"])
            if said.verdict["outcome"] != "inconclusive":
                break
        return said
