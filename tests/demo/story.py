"""The steps, each with what is expected and what was seen."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.demo.forms import Judging
from tests.demo.material import MODEL, Release
from tests.demo.table import Report
from tests.demo.traffic import Traffic
from tests.rig.fleet import Device, Fleet, RigError, until

SITE = "site=berlin"
RESTING = ("confirmed", "reverted", "rejected", "failed", "cancelled", "superseded")


class Story:
    """One server, one device, one client, step by step."""

    def __init__(
        self, fleet: Fleet, device: Device, report: Report, releases: dict[str, Release], foreign: Path
    ) -> None:
        """`foreign`: a bundle of somebody else's fleet."""
        self.fleet, self.device, self.report, self.releases = fleet, device, report, releases
        self.foreign = foreign
        self.traffic: Traffic | None = None
        self.judging: Judging | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._published: dict[str, Future[Any]] = {}

    def stop(self) -> None:
        """End what goes on beside the story."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for ending in (self.judging, self.traffic):
            if ending is not None:
                ending.stop()

    # --- small things -------------------------------------------------------------------------------------------

    def publish_all(self) -> None:
        """Begin to sign and upload them, one after the other: a release engineer does not wait for devices."""
        for version, release in self.releases.items():
            self._published[version] = self._pool.submit(self.fleet.cli, "publish", str(release.folder))

    def publish(self, version: str) -> None:
        """Wait until it is published. Raises RigError."""
        self._published[version].result()

    def roll_out(self, version: str) -> str:
        """Start a rollout to the label; its id."""
        return str(self.fleet.json("rollout", "start", MODEL, version, "--to", SITE)["id"])

    def assignment(self, rollout: str) -> dict[str, Any]:
        """The device's part of a rollout, as the server knows it."""
        return dict(self.fleet.api(f"/v1/rollouts/{rollout}")["assignments"][0])

    def server_says(self, rollout: str, *states: str) -> dict[str, Any]:
        """Wait until the server knows one of these results."""
        found: dict[str, Any] = until(
            lambda: (one := self.assignment(rollout))["state"] in states and one,
            f"{rollout} to be {' or '.join(states)}",
        )
        return found

    def rests_as(self, version: str, deadline_s: float = 90.0) -> str:
        """Wait until the attempt with that version rests; its phase."""

        def rests() -> str:
            unit = self.device.ask("status")["units"].get(MODEL, {})
            return str(unit["phase"]) if unit.get("offered") == version and unit["phase"] in RESTING else ""

        return str(until(rests, f"{version} to rest", deadline_s))

    def running(self) -> str:
        """The release that answers now."""
        return str(self.device.ask("status")["units"][MODEL]["running"])

    def verdict(self) -> dict[str, Any]:
        """The device's newest verdict."""
        return dict(self.device.ask("verdict", unit=MODEL)["verdict"])

    def reason(self) -> str:
        """Why the unit is where it is."""
        return str(self.device.ask("status")["units"][MODEL]["reason"])

    def live_worker(self) -> int:
        """Process id of the worker that answers; 0 while there is none."""
        host = self.device.ask("status")["units"][MODEL]["host"]
        return next((int(w["pid"]) for w in host["workers"] if w["worker"] == host["live_worker"]), 0)

    # --- the steps ----------------------------------------------------------------------------------------------

    def first_release(self) -> None:
        """1: published, rolled out, verified, gated, live, confirmed."""
        with self.report.step("1 · A first release: published, rolled out, proven, live"):

            def look() -> tuple[bool, str]:
                self.publish("1.0.0")
                rollout = self.roll_out("1.0.0")
                state = self.server_says(rollout, "confirmed", "rejected", "failed", "reverted")["state"]
                return state == "confirmed" and self.running() == "1.0.0", f"{state}, {self.running()} answers"

            self.report.expect("1 first release", "confirmed on the device, then on the server", look)

            def relative() -> tuple[bool, str]:
                checks = checks_of(self.verdict())
                outcome = checks["latency_ratio"]["outcome"]
                return outcome == "not_applicable", f"ratio to an incumbent: {outcome}"

            self.report.expect("1 nothing to compare with", "not_applicable, never pass", relative)

    def better_release(self) -> None:
        """2: replaced under live traffic, with the gate's figures."""
        with self.report.step("2 · A better one replaces it under live traffic"):

            def look() -> tuple[bool, str]:
                self.publish("1.1.0")
                state = self.server_says(self.roll_out("1.1.0"), "confirmed", "rejected", "failed", "reverted")["state"]
                return state == "confirmed" and self.running() == "1.1.0", f"{state}, {self.running()} answers"

            self.report.expect("2 replacement", "confirmed under live traffic", look)
            self.report.expect("2 gate's figures", "accuracy, p50, p95, ratio with interval", self._figures)

    def _figures(self) -> tuple[bool, str]:
        checks = checks_of(self.verdict())
        accuracy, ratio = checks["accuracy"], checks["latency_ratio_work"]
        parts = [f"accuracy {accuracy['incumbent']:.4f} → {accuracy['measured']:.4f}"]
        for name, text in (("latency_p50", "p50"), ("latency_p95", "p95")):
            measured = checks[name]
            # Not told where the twin only ran while it gave way to applications.
            before = f"{measured['incumbent']:.1f} → " if measured["incumbent"] is not None else ""
            parts += [f"{text} {before}{measured['measured']:.1f} ms"]
        parts.append(f"work ratio {ratio['measured']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]")
        return ratio["low"] <= ratio["measured"] <= ratio["high"], ", ".join(parts)

    def forgeries(self) -> None:
        """3: altered after signing, signed with a foreign key: refused before anything is unpacked."""
        with self.report.step("3 · Forgeries"):
            bundle = self.fleet.folder / "forgeries"
            bundle.mkdir(exist_ok=True)
            altered = bundle / "altered.bundle"

            def alter() -> tuple[bool, str]:
                self.export("1.1.0", altered)
                content = altered.read_bytes()
                place = content.index(b'"accuracy_min":0.85')
                altered.write_bytes(content[:place] + b'"accuracy_min":0.05' + content[place + 19 :])
                return self._refused(altered, 17, "manifest_mismatch")

            self.report.expect("3 altered after signing", "refused, nothing unpacked", alter)

            def forge() -> tuple[bool, str]:
                return self._refused(self.foreign, 10, "unknown_root")

            self.report.expect("3 signed with a foreign key", "refused, nothing unpacked", forge)

    def _refused(self, bundle: Path, status: int, expected: str) -> tuple[bool, str]:
        before = self.running()
        done = self.device.cli("install", str(bundle), "--json", check=False)
        code = json.loads(done.stdout).get("error", {}).get("code", "installed")
        left = (
            list((self.device.state / "incoming").rglob("*.onnx")) if (self.device.state / "incoming").exists() else []
        )
        good = (done.returncode, code) == (status, expected) and not left and self.running() == before
        return good, f"refused: {code}; exit code {done.returncode}; files unpacked: {len(left)}"

    def export(self, version: str, target: Path) -> None:
        """`interlock bundle export`, with a permit for this device."""
        self.fleet.cli("bundle", "export", MODEL, version, "-o", str(target), "--device", self.device.name)

    def misfit(self) -> None:
        """4: another dtype, shape and classes: refused at the contract."""
        with self.report.step("4 · A real misfit"):

            def look() -> tuple[bool, str]:
                self.publish("2.0.0")
                found = self.server_says(self.roll_out("2.0.0"), "rejected", "confirmed", "failed", "reverted")
                problems = checks_of(self.verdict())["contract"]["detail"]["problems"]
                return found[
                    "state"
                ] == "rejected" and self.reason() == "contract_broken", f"{found['state']}: {problems[0]}"

            self.report.expect("4 misfit", "rejected at the contract", look)

    def treachery(self) -> None:
        """6: passes the gate, answers NaN later; taken back, and its bytes are remembered."""
        traffic = self.clients
        with self.report.step("6 · A release that turns bad"):
            rollout = ""

            def look() -> tuple[bool, str]:
                nonlocal rollout
                self.publish("1.2.0")
                rollout = self.roll_out("1.2.0")
                phase = self.rests_as("1.2.0")
                if phase != "reverted":
                    return False, phase
                self.server_says(rollout, "reverted")
                seen, reached = self.seconds_until_back("1.2.0"), traffic.tally.non_finite
                good = seen <= 1.0 and reached == 0 and self.running() == "1.1.0"
                return (
                    good,
                    f"{phase} {seen * 1000:.0f} ms after the first bad answer; bad answers that clients saw: {reached}",
                )

            self.report.expect("6 NaN in live answers", "no client sees one, back within 1 s", look)

            def told() -> tuple[bool, str]:
                one = self.server_says(rollout, "reverted", "confirmed")
                return one["state"] == "reverted", f"the server shows it as {one['state']} ({one.get('reason', '')})"

            self.report.expect("6 told as it is", "the server shows it as reverted", told)

            def again() -> tuple[bool, str]:
                self.publish("1.2.1")
                one = self.server_says(self.roll_out("1.2.1"), "failed", "rejected", "confirmed", "reverted")
                return self.reason() == "quarantined" and self.running() == "1.1.0", f"{one['state']}: {self.reason()}"

            self.report.expect("6 same bytes, new number", "not tried again", again)

    def seconds_until_back(self, version: str) -> float:
        """From the first bad answer, as the agent was told of it, until the host was back: the device's own record."""
        events = self.fleet.api(f"/v1/devices/{self.device.name}/history")["events"]
        found = next(e for e in events if e["kind"] == "reverted" and e.get("version") == version)
        return float(found["data"]["back_after_s"])

    @property
    def clients(self) -> Traffic:
        """The live traffic."""
        if self.traffic is None:
            raise RigError("no traffic yet")
        return self.traffic

    def deaths(self) -> None:
        """7: the agent in an install, the worker in a trial, the worker after a confirmation."""
        with self.report.step("7 · Sudden deaths"):

            def agent_dies() -> tuple[bool, str]:
                self.publish("1.1.2")
                self.roll_out("1.1.2")
                self.device.wait_phase(MODEL, "gating")
                before = self.clients.tally.failed
                self.device.agent.kill()
                answered = self.clients.tally.sent
                until(lambda: self.clients.tally.sent > answered + 20, "answers without an agent")
                self.device.start_agent()
                phase = self.device.wait_phase(MODEL, "trial")["phase"]
                lost = self.clients.tally.failed - before
                return (
                    phase == "trial" and lost == 0,
                    f"host served on, agent went on to {phase}; failed requests {lost}",
                )

            self.report.expect("7 agent killed in an install", "served on; finished later", agent_dies)
            self.report.expect(
                "7 worker killed in the trial", "standby takes over: reverted, 0 failed", self._trial_death
            )
            self.report.expect("7 worker killed after it", "same release again, 0 failed", self._confirmed_death)

    def _trial_death(self) -> tuple[bool, str]:
        seconds, lost = self._kill_live()
        phase = self.rests_as("1.1.2")
        good = phase == "reverted" and lost == 0 and self.running() == "1.1.0"
        return good, f"{phase}, {self.running()} answers; next good answer after {seconds * 1000:.0f} ms, failed {lost}"

    def _confirmed_death(self) -> tuple[bool, str]:
        # Two deaths within one request's time make it poison, by design: 500, never a third worker (docs/reference/
        # host.md). These are two stories: what the first one hit is answered before the second begins.
        self.clients.take_turns()
        pid = until(self.live_worker, "a live worker")
        seconds, lost = self._kill_live()
        until(lambda: self.live_worker() not in (0, pid), "the same release again")
        good = self.running() == "1.1.0" and lost == 0
        return good, f"{self.running()} loaded again; next good answer after {seconds * 1000:.0f} ms, failed {lost}"

    def _kill_live(self) -> tuple[float, int]:
        before = self.clients.tally.failed
        moment = time.monotonic()
        os.kill(until(self.live_worker, "a live worker"), signal.SIGKILL)
        seconds = until(lambda: self.clients.first_good_after(moment), "a good answer")
        return float(seconds), self.clients.tally.failed - before

    def sideload(self) -> None:
        """8: no server; a file; the server learns of it."""
        with self.report.step("8 · Without a network"):
            bundle = self.fleet.folder / "filetype-1.1.1.bundle"

            def look() -> tuple[bool, str]:
                self.publish("1.1.1")
                self.export("1.1.1", bundle)
                if self.fleet.server is None:
                    raise RigError("no server")
                self.fleet.server.stop()
                done = self.device.cli("install", str(bundle), check=False)
                return (
                    done.returncode == 0 and self.running() == "1.1.1",
                    f"exit code {done.returncode}, {self.running()} answers",
                )

            self.report.expect("8 sideload", "confirmed with the server stopped", look)

            def learns() -> tuple[bool, str]:
                self.fleet.start_server()
                unit = until(lambda: self._server_knows("1.1.1"), "the server to learn of it")
                return True, f"server shows confirmed {unit['confirmed']}, running {unit['running']}; origin sideload"

            self.report.expect("8 the server learns", "shown as it is, not pushed back", learns)

    def _server_knows(self, version: str) -> dict[str, Any] | None:
        try:
            device = self.fleet.api(f"/v1/devices/{self.device.name}")
            events = self.fleet.api(f"/v1/devices/{self.device.name}/history")["events"]
        except OSError:
            return None
        unit = device["units"].get(MODEL, {})
        told = any(e["kind"] == "confirmed" and e.get("origin") == "sideload" for e in events)
        return unit if told and unit.get("confirmed") == version else None


def checks_of(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The checks of a verdict by name."""
    return {check["check"]: check for stage in verdict["stages"] for check in stage["checks"]}


def foreign_bundle(folder: Path, release: Release) -> Path:
    """A bundle that is genuine in somebody else's fleet: own server, own keys, with a permit for any device."""
    stranger, target = Fleet(folder), folder / "foreign.bundle"
    stranger.start_server()
    try:
        stranger.init_keys(MODEL)
        stranger.cli("publish", str(release.folder))
        stranger.cli("bundle", "export", MODEL, release.version, "-o", str(target), "--valid-for", "7d")
    finally:
        stranger.stop()
    return target
