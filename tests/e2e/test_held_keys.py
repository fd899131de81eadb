"""A device whose key is not in a file: in a TPM, or in a PKCS#11 token. It joins, works, loses the key and finds it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping

import pytest

from interlock_shared.errors import Unreachable
from tests.e2e.world import MODEL, World, eventually, temporary
from tests.rig import tokens
from tests.rig.fleet import Device, until

pytestmark = pytest.mark.e2e

PLACES = {"tpm": tokens.tpm, "token": tokens.token}


@pytest.fixture(params=PLACES)
def keeper(request: pytest.FixtureRequest) -> Iterator[tokens.Keeper]:
    with temporary() as folder, PLACES[request.param](folder) as made:
        yield made


class Holder(World):
    """Its devices keep their keys there."""

    uri = ""

    def server_again(self) -> None:
        """As after an upgrade."""
        if self.server is not None:
            self.server.kill()
        self.start_server()

    def join(self, made: Device, labels: Mapping[str, str]) -> None:
        token = self.ask("POST", "/v1/device-tokens", {"labels": dict(labels), "device": made.name})
        words = ["--token", token["token"], "--root-sha256", token["root_sha256"], "--name", made.name]
        made.cli("enrol", "--server", self.url, *words, "--key", self.uri)


def connected(device: Device) -> bool:
    """Where the agent's process has lost the key for good, it ends, and systemd starts it."""
    if device.agent.popen is not None and device.agent.popen.poll() is not None:
        assert device.agent.popen.returncode == 0, device.agent.tail()
        device.start_agent()
    with contextlib.suppress(Unreachable):  # it is just ending
        return bool(device.ask("status")["link"]["connected"])
    return False


def test_a_device_works_with_a_key_that_it_cannot_read(keeper: tokens.Keeper) -> None:
    """Mutual TLS on both links, a signed verdict; while the key is away, what serves goes on, and it is said."""
    with temporary() as folder, contextlib.ExitStack() as stack:
        made = Holder(folder, {**os.environ, **keeper.environment})
        made.uri = keeper.uri
        stack.callback(made.stop)
        made.start_server()
        made.trust(MODEL)
        device = made.device("cam-1")
        identity = device.state / "identity"
        assert json.loads((identity / "identity.json").read_text())["key"] == keeper.uri
        kept = (identity / "device.pem").read_text()
        assert ("-----BEGIN PRIVATE KEY" not in kept, (identity / "device.pem").stat().st_mode & 0o777) == (True, 0o600)
        assert sorted(one.name for one in identity.iterdir()) == ["device.crt", "device.pem", "identity.json"]
        device.start()
        version = made.first(device)
        told = made.api("/v1/devices/cam-1/verdicts")["verdicts"]
        assert [(one["verified"], one["error"]) for one in told] == [(True, "")]
        assert device.ask("status")["key"] == {"place": keeper.uri.partition("?")[0], "trouble": ""}

        keeper.stop()
        if isinstance(keeper, tokens.Tpm):
            made.server_again()  # to which a device must prove who it is
        else:  # a module goes on with what it has read
            device.agent.kill()
            device.start_agent()
        status = until(lambda: (s := device.ask("status"))["key"]["trouble"] and s, "what is wrong with the key")
        assert (status["link"]["connected"], status["units"][MODEL]["running"]) == (False, version)
        assert any(note.startswith("the device's key") for note in status["notes"]), status["notes"]
        assert status["key"]["place"] in device.cli("status").stdout
        keeper.start()
        eventually(lambda: connected(device), "the device's return")
        assert device.ask("status")["key"]["trouble"] == ""
