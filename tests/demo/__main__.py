"""`make demo`: the main job, end to end, on real models, real files and real processes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape

from tests.demo import altered, material
from tests.demo.material import FIRST, MISFIT, MODEL, SECOND, Release
from tests.demo.story import SITE, Story
from tests.demo.table import Report
from tests.demo.traffic import Traffic
from tests.models.fetch import fetch
from tests.rig.fleet import Device, Fleet, RigError

HERE = Path(".demo")
TRIAL_S = 2.0
ENDS = (signal.SIGINT, signal.SIGTERM)
SITE_LABELS = {"site": "berlin"}


def prepare(report: Report) -> tuple[dict[str, Release], material.Items]:
    """Models from the index, golden data from this machine, release folders."""
    v3_2, v3_3, misfit = (fetch(name) for name in (FIRST, SECOND, MISFIT))
    labels = material.labels_of(v3_2)
    golden = HERE / "golden"
    items = material.golden_files(golden, v3_2, v3_3, labels)
    report.say(f"golden data: {len(items.rows)} real files of {len(set(items.classes.tolist()))} types")
    makers: dict[str, tuple[str, Callable[[Path], object]]] = {
        "1.0.0": ("first", lambda target: shutil.copy(v3_2, target)),
        "1.1.0": ("second", lambda target: shutil.copy(v3_3, target)),
        "1.1.1": ("few", lambda target: altered.with_note(v3_3, target, "1.1.1")),
        "1.1.2": ("few", lambda target: altered.with_note(v3_3, target, "1.1.2")),
        "1.2.0": ("clean", lambda target: altered.treacherous(v3_3, target, material.MAGIC)),
        "1.2.1": ("clean", lambda target: altered.treacherous(v3_3, target, material.MAGIC)),
    }
    releases = {}
    for version, (held, make) in makers.items():
        folder = HERE / "releases" / version
        trial_s = 8.0 if version == "1.1.2" else TRIAL_S  # its trial is cut short by a death; it must be on by then
        releases[version] = material.write_release(
            folder, version, golden / f"{held}.npz", labels, make, trial_s=trial_s
        )
    folder = HERE / "releases" / "2.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(misfit, folder / "model.onnx")
    (folder / "bundle.toml").write_text(material.misfit_toml("2.0.0"))
    releases["2.0.0"] = Release("2.0.0", folder)
    return releases, items


def tell(fleet: Fleet, device: Device, report: Report, releases: dict[str, Release], items: material.Items) -> Story:
    """The story."""
    story = Story(fleet, device, report, releases)
    story.first_release()
    story.traffic = Traffic(device.unit(MODEL)["address"], MODEL, material.live_rows(items))
    story.traffic.start()
    for step in (story.better_release, story.forgeries, story.misfit, story.treachery, story.deaths, story.sideload):
        step()
    return story


def play(fleet: Fleet, device: Device) -> None:
    """`KEEP=1`: what to play with."""
    text = f"""
everything runs on until Ctrl-C, or: kill {os.getpid()}. In another shell, in this folder:

  export INTERLOCK_SERVER={fleet.url} INTERLOCK_TOKEN={fleet.token}
  export INTERLOCK_KEYS={fleet.keys.resolve()} INTERLOCK_CONFIG={device.config.resolve()}
  .venv/bin/interlock device show {device.name}
  .venv/bin/interlock rollout start {MODEL} 1.0.0 --to {SITE}
  .venv/bin/interlock-agent status
  .venv/bin/interlock-agent verdict {MODEL}
  .venv/bin/interlock-agent rollback {MODEL}
  curl http://{device.unit(MODEL)["address"]}/v2/models/{MODEL}
"""
    print(text, flush=True)


def main() -> int:
    """0 only if all is as expected."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was started is ended
    report = Report()
    state = HERE / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    try:
        with report.step("Set-up: models and golden data"):
            releases, items = prepare(report)
    except (RuntimeError, OSError) as broken:
        report.say(f"[red]{escape(str(broken))}[/]")
        return 1
    began = time.monotonic()
    fleet = Fleet(state.resolve())
    story = None
    try:
        fleet.start_server()
        fleet.init_keys(MODEL)
        device = fleet.device("orin-1", {"listen": "127.0.0.1:0"}, SITE_LABELS)
        device.start()
        report.say(f"server {fleet.url}, device {device.name}; everything is in {HERE}/state")
        story = tell(fleet, device, report, releases, items)
        tally = story.clients.stop()
        by_release = ", ".join(f"{release} {count}" for release, count in sorted(tally.releases.items()))
        report.expect(
            "live requests",
            "0 failed",
            lambda: (tally.failed == 0 and tally.sent > 0, f"{tally.sent} sent, {tally.failed} failed; {by_release}"),
        )
        for failure in tally.failures[:10]:
            report.say(f"  failed: {escape(failure)}")
        report.show()
        report.say(f"{time.monotonic() - began:.0f} s after set-up")
        if os.environ.get("KEEP") == "1" and report.good:
            play(fleet, device)
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
            signal.sigwait(ENDS)
    except (RigError, RuntimeError) as broken:
        report.say(f"[red]{escape(str(broken))}[/]")
        return 1
    except KeyboardInterrupt:
        report.say("interrupted; everything that was started is ended")
        return 130
    finally:
        if story is not None and story.traffic is not None:
            story.traffic.stop()
        fleet.stop()
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
