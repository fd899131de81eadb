"""A real device and its identity: a batch's device that waits, a revocation that cuts it off, a return."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from typing import Any

from interlock_agent.fetcher import enrolment
from interlock_agent.fetcher.messages import Job
from tests.e2e.world import MODEL, World, eventually, temporary
from tests.rig.fleet import Device, until

CUT_S = 10.0


class Image(World):
    """Its devices come from one image, and are not enrolled when they are made."""

    def join(self, made: Device, labels: Any) -> None:
        """Nothing yet."""

    def invited(self, made: Device, **more: Any) -> Job:
        """What the device is told to enrol by."""
        token = self.ask("POST", "/v1/device-tokens", more)
        job = Job("enrol", "", str(made.state), 0.0, "", server=self.url, name=made.name)
        return replace(job, token=token["token"], root_sha256=token["root_sha256"])


def test_from_the_image_to_the_scrap_heap_and_back() -> None:
    """Waits for approval, is let in, works, is revoked within seconds, and comes back by a token for it."""
    with temporary() as folder, contextlib.ExitStack() as stack:
        made = Image(folder, dict(os.environ))
        stack.callback(made.stop)
        made.start_server()
        made.trust(MODEL)
        device = made.device("cam-1")
        job = made.invited(device, uses=2, labels={"site": "hall"})
        words = ("--token", job.token, "--root-sha256", job.root_sha256, "--name", "cam-1", "--no-wait")
        waits = device.cli("enrol", "--server", made.url, *words, check=False)
        assert (waits.returncode, "waiting_for_approval" in waits.stderr) == (3, True), waits.stderr
        assert [one["device"] for one in made.api("/v1/devices")["waiting"]] == ["cam-1"]
        made.ask("POST", "/v1/devices/cam-1/approve", {})
        assert enrolment.enrol(job)["labels"] == {"site": "hall"}
        device.start()
        eventually(lambda: made.api("/v1/devices/cam-1")["online"], "the device's word")
        assert device.ask("status")["certificate"]["trouble"] == ""

        began = time.monotonic()
        made.ask("POST", "/v1/devices/cam-1/revoke", {"reason": "sold"})
        until(lambda: not device.ask("status")["link"]["connected"], "the end of its session", CUT_S)
        assert time.monotonic() - began < CUT_S
        assert made.api("/v1/devices/cam-1")["revoked_at"]
        device.agent.kill()

        assert enrolment.enrol(made.invited(device, device="cam-1"))["labels"] == {"site": "hall"}  # as it had
        device.start_agent()
        eventually(lambda: made.api("/v1/devices/cam-1")["online"], "the device's return")
