"""The owner's file: defaults where it is silent, an error that names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlock_agent import config
from interlock_shared.errors import Invalid


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return config.load(path)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("colour = 'red'", "colour"),
        ("[device]\nstate = '/x'", "device.state"),
        ("[units.detector]\ncommand = 'x'", "units.detector.command"),
        ("[units.detector.gate]\naccuracy = 0.5", "units.detector.gate.accuracy"),
        ("[units.detector.gate]\naccuracy_min = 2", "units.detector.gate.accuracy_min"),
        ("[units.detector.gate]\ncommand = ['./measure']", "units.detector.gate.command"),
        ("[units.detector.gate]\ncommand = ['measure', '/x']", "units.detector.gate.command"),
        ("[units.detector]\nthreads = 0", "units.detector.threads"),
        ("[units.detector.trial]\nlease_s = 0", "units.detector.trial.lease_s"),
        ("[link]\nkeepalive_s = 1", "link.keepalive_s"),
        ("[defaults]\naccept = 'some'", "defaults.accept"),
        ("log_format = 'xml'", "log_format"),
        ("[units.'Big Name']", "units"),
        ("[device", "config"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(Invalid) as wrong:
        load(tmp_path, text)
    assert str(wrong.value.details["field"]).startswith(field)
    assert "agent.toml" in wrong.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"nothing\.toml"):
        config.load(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(Invalid, match=r"latin\.toml"):
        config.load(tmp_path / "latin.toml")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == config.Config()
    unit = config.Config().unit("anything")
    assert unit.providers == ("CPUExecutionProvider",)
    assert unit.gate.limits().allow_none is False
    assert config.Config().listen("detector") == "unix:/run/interlock/detector.sock"


def test_a_unit_has_its_own_section(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "[device]\nrun_dir = '/r'\n[defaults]\naccept = 'listed'\n"
        "[units.detector]\nlisten = '127.0.0.1:8500'\n"
        "[units.detector.gate]\nlatency_ms = { p95 = 5 }\nallow_none = true\n"
        "[units.plain]\n",
    )
    assert found.listen("detector") == "127.0.0.1:8500"
    assert found.listen("plain") == "unix:/r/plain.sock"
    assert found.unit("detector").gate.limits().latency_ms == {"p95": 5}
    assert found.unit("detector").gate.limits().allow_none is True
    assert found.unit("detector").options()["load_timeout_s"] == 120.0
    with pytest.raises(KeyError):
        found.unit("stranger")
