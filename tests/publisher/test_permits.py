"""Who may install a file: the words of a command line, the server's director, and a depot's key that the root names."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from interlock_server.__main__ import Running
from interlock_server.publisher.permits import Meant, duration
from interlock_shared import classes
from interlock_shared.errors import Invalid
from tests.publisher.test_main_path import Shell, server, shell

__all__ = ["server", "shell"]


@pytest.mark.parametrize(
    ("text", "hours"), [("90d", 90 * 24), ("12h", 12), ("2w", 14 * 24), ("30m", 0.5), ("3660d", 3660 * 24)]
)
def test_a_time(text: str, hours: float) -> None:
    assert duration(text, "--valid-for") == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1.5d", "1y", "3661d", "99999999999d", "٣d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Invalid, match="--valid-for"):
        duration(text, "--valid-for")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("press", {"class": "press"}),
        ("class=press", {"class": "press"}),
        ("gpu=NVIDIA L4, arch=x86_64", {"gpu": "NVIDIA L4", "arch": "x86_64"}),
        ("press,compute_capability=8.7", {"class": "press", "compute_capability": "8.7"}),
    ],
)
def test_a_class(text: str, facts: dict[str, str]) -> None:
    assert classes.parse(text) == facts
    assert classes.parse(classes.show(facts)) == facts
    assert classes.belongs({**facts, "board": "x"}, [facts])
    assert not classes.belongs({}, [facts])


@pytest.mark.parametrize("text", ["", ",", "gpu=", "=x", "colour=red", "press,oven", "gpu=" + "x" * 200])
def test_what_is_no_class(text: str) -> None:
    with pytest.raises(Invalid, match="class"):
        classes.parse(text)


async def test_a_depot_gives_a_file_another_permit_without_the_server(
    server: Running, shell: Shell, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depot, exported, early = tmp_path / "depot", tmp_path / "exported.bundle", tmp_path / "early.bundle"
    key = depot / "sideload.pem"
    await shell("keys", "init", "--no-passphrase", "--model", "detector")
    await shell("publish", folder)
    words = ("bundle", "export", "detector", "1.4.0", "--device", "press-7", "--valid-for", "30m")
    await shell(*words, "-o", early)
    await shell("keys", "generate", "sideload", "--no-passphrase", "--keys", depot)
    await shell("keys", "export", "-o", tmp_path / "depot.json", "--keys", depot)
    await shell("root", "propose", "--add", tmp_path / "depot.json")
    await shell(*words, "-o", exported)
    monkeypatch.setenv("INTERLOCK_SERVER", "http://127.0.0.1:1")  # none, from here on
    renewed = tmp_path / "renewed.bundle"
    permit = ("bundle", "permit", exported, "--key", key, "-o", renewed)
    said = await shell(*permit, "--class", "press", "--device", "press-9", "--valid-for", "90d")
    assert "press-9, class press" in said
    for root in (("--root", tmp_path / "keys" / "root.json"), ()):
        found = await shell.document("bundle", "verify", renewed, *root)
        assert found["permit"]["devices"] == ["press-9"]
        assert found["permit"]["classes"] == [{"class": "press"}]
    assert "foreign_sideload_key" in await shell("bundle", "permit", early, "--key", key, "-o", renewed, code=1)
    other = tmp_path / "keys" / "targets.pem"
    assert "foreign_sideload_key" in await shell("bundle", "permit", exported, "--key", other, "-o", renewed, code=1)
    exported.write_bytes(exported.read_bytes().replace(b"fp32", b"fp16"))
    assert "error[" in await shell(*permit, code=1)
    assert not list(tmp_path.glob(".tmp-*"))


def test_for_whom_in_words() -> None:
    meant = Meant.of(("press-7",), ("oven", "gpu=NVIDIA L4"), "1d")
    body = meant.body()
    assert (body["devices"], len(body["classes"]), body["valid_for_s"]) == (["press-7"], 2, 86_400)
    assert Meant.of((), (), "1d").body()["devices"] is None
