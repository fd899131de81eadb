"""`make demo`: the main job, end to end, on real models, real files and real processes."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from tests.demo import altered, material
from tests.demo.forms import LIMIT, Form, Forms, Judging
from tests.demo.material import FIRST, MISFIT, MODEL, SECOND, Release
from tests.demo.story import SITE, Story, foreign_bundle
from tests.demo.table import Report
from tests.demo.traffic import Traffic
from tests.models.fetch import fetch
from tests.rig.fleet import Device, Fleet, RigError

HERE = Path(".demo")
ENDS = (signal.SIGINT, signal.SIGTERM)
SITE_LABELS = {"site": "berlin"}
# The clients' own slowness is no reason for the gate to step back: they, the server and the device share this machine.
DEVICE = {"listen": "127.0.0.1:0", "gate.live_slowdown_max": 4.0}


@dataclass(frozen=True)
class Prepared:
    """What the story needs."""

    releases: dict[str, Release]
    items: material.Items
    forms: Forms


def prepare(report: Report) -> Prepared:
    """Models from the index, golden data from this machine, release folders, bundles for dry runs."""
    v3_2, v3_3, misfit = (fetch(name) for name in (FIRST, SECOND, MISFIT))
    labels = material.labels_of(v3_2)
    golden = HERE / "golden"
    items = material.golden_files(golden, v3_2, v3_3, labels)
    report.say(f"golden data: {len(items.rows)} real files of {len(set(items.classes.tolist()))} types")
    noted, spoilt = partial(altered.with_note, v3_3), partial(altered.treacherous, v3_3, first_byte=material.MAGIC)
    eight_bits, twofold = partial(altered.quantised, v3_3), partial(altered.twofold, v3_3)
    long = {"trial_s": 8.0}  # a death cuts this trial short, and it must be on by then
    makers: dict[str, tuple[str, Callable[[Path], object], dict[str, Any]]] = {
        "1.0.0": ("few_first", partial(shutil.copy, v3_2), {}),
        "1.1.0": ("second", partial(shutil.copy, v3_3), {}),
        "2.0.0": ("", partial(shutil.copy, misfit), {}),
        "1.2.0": ("clean", spoilt, {}),
        "1.2.1": ("clean", spoilt, {}),
        "1.1.2": ("few", partial(noted, note="1.1.2"), long),
        "1.1.1": ("few", partial(noted, note="1.1.1"), {}),
        "1.1.0-int8": ("few", eight_bits, {"ratio_max": LIMIT, "closeness": material.BY_BEST}),
        "1.1.0-twofold": ("few", twofold, {"ratio_max": LIMIT}),
    }
    releases = {}
    for version, (held, make, more) in makers.items():
        data = golden / f"{held}.npz" if held else None
        releases[version] = material.write_release(HERE / "releases" / version, version, data, labels, make, **more)
    whole = Form.of(releases["1.1.0"].folder)
    forms = Forms(whole, *(Form.of(releases.pop(f"1.1.0-{form}").folder) for form in ("int8", "twofold")))
    return Prepared(releases, items, forms)


def tell(story: Story, prepared: Prepared) -> None:
    """The story."""
    story.publish_all()
    story.first_release()
    story.traffic = Traffic(story.device.unit(MODEL)["address"], MODEL, material.live_rows(prepared.items))
    story.traffic.start()
    story.better_release()
    story.judging = Judging(story.device, prepared.forms)  # while the device's own gate measures nothing
    story.forgeries()
    story.misfit()
    story.judging.show(story.report)
    for step in (story.treachery, story.deaths, story.sideload):
        step()


def play(fleet: Fleet, device: Device) -> None:
    """`KEEP=1`: what to play with."""
    text = f"""
everything runs on until Ctrl-C, or: kill {os.getpid()}. In another shell, in this folder:

  export INTERLOCK_SERVER={fleet.url} INTERLOCK_TOKEN={fleet.token}
  export INTERLOCK_KEYS={fleet.keys.resolve()} INTERLOCK_CONFIG={device.config.resolve()}
  export INTERLOCK_CA={fleet.ca_file.resolve()}
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
            prepared = prepare(report)
            foreign = foreign_bundle(state.resolve() / "foreign", prepared.releases["1.2.0"])
    except (RuntimeError, OSError, RigError) as broken:
        report.say(f"[red]{escape(str(broken))}[/]")
        return 1
    began = time.monotonic()
    fleet = Fleet(state.resolve())
    story = None
    try:
        fleet.start_server()
        fleet.init_keys(MODEL)
        device = fleet.device("orin-1", DEVICE, SITE_LABELS)
        device.start()
        report.say(f"server {fleet.url}, device {device.name}; everything is in {HERE}/state")
        story = Story(fleet, device, report, prepared.releases, foreign)
        tell(story, prepared)
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
        if story is not None:
            story.stop()
        fleet.stop()
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
