"""A device joins and renews, through its own code and a real server: what is sent to whom, what is kept, and said."""

from __future__ import annotations

import asyncio
import ssl
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.clock import SystemClock as Clock
from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.adapters.identity import Identity
from interlock_agent.core.times import rfc3339
from interlock_agent.fetcher import credentials, enrolment
from interlock_agent.fetcher.http import Server
from interlock_agent.fetcher.messages import Job
from interlock_agent.ports import Stored
from interlock_server.adapters.device_ca import DeviceCA
from interlock_shared import canonical, topics
from interlock_shared.errors import Conflict, Forbidden, InterlockError, Invalid, Unreachable, Untrusted
from tests.server.fleet_fixture import Fleet, Offline, running

DEVICE = "edge-1"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running(tmp_path / "server") as one:
        yield one


async def invited(fleet: Fleet, state: Path, **more: Any) -> Job:
    """What the technician types."""
    made = await fleet.admin.post(topics.DEVICE_TOKENS, more)
    job = Job("enrol", DEVICE, str(state), 0.0, "", server=fleet.admin.url, name=DEVICE)
    return replace(job, token=made["token"], root_sha256=made["root_sha256"])


off = asyncio.to_thread  # files are read and written elsewhere than in the loop


async def enrol(job: Job) -> dict[str, Any]:
    return await asyncio.to_thread(enrolment.enrol, job)


async def refusal(job: Job, kind: type[InterlockError]) -> str:
    with pytest.raises(kind) as refused:
        await enrol(job)
    assert not (Path(job.state_dir) / "identity" / "identity.json").exists()
    return refused.value.code


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kind", credentials.KEY_TYPES)
async def test_a_device_joins(fleet: Fleet, tmp_path: Path, kind: str) -> None:
    state = tmp_path / "state"
    job = replace(await invited(fleet, state), key_type=kind)
    facts = await enrol(job)
    assert (facts["device"], facts["server"]) == (DEVICE, fleet.admin.url)
    assert facts["broker"].startswith("mqtts://")
    assert [mode(state / "identity" / name) for name in ("device.pem", "identity.json")] == [0o600, 0o600]
    assert mode(state / "identity") == 0o700
    assert not (state / "identity" / "enrolling.pem").exists()
    assert "PRIVATE" not in (state / "identity" / "device.crt").read_text()
    assert (state / "trust" / "tls_ca.pem").read_text() == fleet.online["tls_ca"]
    identity = await off(Identity, state)
    assert identity.device == DEVICE
    fetcher = FetcherProcess(state, DEVICE, identity.facts, Clock(), Stored())
    assert await fetcher.poll() is None  # known, and nothing is wanted of it


async def test_nothing_is_sent_to_a_server_with_another_root(fleet: Fleet, tmp_path: Path) -> None:
    job = await invited(fleet, tmp_path / "state")
    assert await refusal(replace(job, root_sha256="0" * 64), Untrusted) == "root_mismatch"
    assert await refusal(replace(job, server=job.server.replace("https", "http")), Invalid) == "no_tls"
    assert (await fleet.admin.get(topics.DEVICE_TOKENS))["tokens"][0]["used"] == 0


@dataclass
class Impostor:
    """Somebody in the middle: gives the true metadata, with a TLS certificate of his own."""

    files: dict[str, bytes]
    url: str = ""
    heard: list[str] = field(default_factory=list)


@contextmanager
def in_the_middle(pair: tuple[Path, Path], files: dict[str, bytes]) -> Iterator[Impostor]:
    """He listens."""
    one = Impostor(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            data = one.files.get(self.path.rsplit("/", 1)[-1])
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def do_POST(self) -> None:
            one.heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_error(500)

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None: ...

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with Quiet(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        one.url = f"https://127.0.0.1:{server.server_address[1]}"
        yield one
        server.shutdown()
        thread.join()


async def test_somebody_in_the_middle_gets_no_token(fleet: Fleet, tmp_path: Path) -> None:
    job = await invited(fleet, tmp_path / "state")
    root = (fleet.folder / "tuf" / "1.root.json").read_bytes()
    his = await off(DeviceCA.open, tmp_path / "his")
    pair = await off(his.server_files, ["127.0.0.1"])
    with in_the_middle(pair, {"1.root.json": root}) as impostor:
        assert await refusal(replace(job, server=impostor.url), Untrusted) == "unknown_server"
        assert impostor.heard == []
        state = tmp_path / "state"
        await enrol(job)  # the true server takes the token afterwards
        identity = {**(await off(Identity, state)).facts, "server": impostor.url}
        fetcher = FetcherProcess(state, DEVICE, identity, Clock(), Stored())
        with pytest.raises(Unreachable) as refused:
            await fetcher.refresh()
        assert refused.value.code == "unknown_server"


async def test_tokens_that_do_not_hold(fleet: Fleet, tmp_path: Path) -> None:
    await enrol(await invited(fleet, tmp_path / "first"))
    used = replace(await invited(fleet, tmp_path / "second"), name="edge-2")
    await enrol(used)
    other = replace(used, state_dir=str(tmp_path / "third"))
    assert await refusal(other, Forbidden) == "token_used"
    assert await refusal(replace(other, token="ilt_unknown"), Forbidden) == "unauthenticated"
    assert await refusal(await invited(fleet, tmp_path / "fourth"), Conflict) == "device_exists"


async def test_an_answer_that_was_lost_is_asked_for_again(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    job = await invited(fleet, state)
    with monkeypatch.context() as broken:

        def lost(*_: Any) -> None:
            raise OSError("power cut")

        broken.setattr(credentials, "keep_pair", lost)
        with pytest.raises(OSError, match="power cut"):
            await enrol(job)
    key = await off(credentials.load_key, state / "identity" / "enrolling.pem")
    facts = await enrol(job)
    assert facts["device"] == DEVICE
    kept = await off(credentials.load_key, state / "identity" / "device.pem")
    assert kept.public_key() == key.public_key()
    assert len((await fleet.admin.get(f"/v1/devices/{DEVICE}"))["certificates"]) == 1


async def test_a_batch_s_device_waits_and_keeps_its_key(fleet: Fleet, tmp_path: Path) -> None:
    state = tmp_path / "state"
    job = await invited(fleet, state, uses=3)
    first = await enrol(job)
    assert (first["status"], (await enrol(job))["keyid"]) == ("waiting", first["keyid"])
    assert not (state / "identity" / "identity.json").exists()
    await fleet.admin.post(f"/v1/devices/{DEVICE}/approve", {})
    assert (await enrol(job))["status"] == "enrolled"
    assert (await off(Identity, state)).facts["keyid"] == first["keyid"]


# --- the chain of roots ----------------------------------------------------------------------------------------------


class Roots:
    """A source of root metadata."""

    def __init__(self, *roots: dict[str, Any]) -> None:
        self.files = {f"{number}.root.json": canonical.encode(one) for number, one in enumerate(roots, 1)}

    def metadata(self, name: str, limit: int) -> bytes | None:
        del limit
        return self.files.get(name)

    def close(self) -> None: ...


def test_the_newest_root_counts_when_the_chain_leads_to_it(tmp_path: Path) -> None:
    mine, stranger = Offline(), Offline()
    online = {role: {"keyid": k.keyid, "key": k.to_dict()} for role in ("snapshot", "timestamp")
              for k in [mine.release_key.public_key]}  # fmt: skip
    one, two, three = (mine.root({**online, "tls_ca": f"CA {n}"}, version=n) for n in (1, 2, 3))
    foreign = stranger.root({**online, "tls_ca": "his"}, version=2)
    first = canonical.sha256(canonical.encode(one))

    def newest(*roots: dict[str, Any]) -> str:
        return credentials.authority_of(enrolment.roots(Roots(*roots), first)[1])  # type: ignore[arg-type]

    assert [newest(one), newest(one, two), newest(one, two, three)] == ["CA 1", "CA 2", "CA 3"]
    bad: tuple[dict[str, Any], ...] = (foreign, three, {**two, "signatures": []}, {"signed": {}})
    for wrong in bad:
        with pytest.raises(Untrusted) as refused:
            newest(one, wrong)
        assert refused.value.code == "bad_root"
    with pytest.raises(Untrusted):
        newest(two)
    with pytest.raises(Untrusted) as refused:
        credentials.authority_of(b'{"signed":{}}')
    assert refused.value.code == "no_tls_ca"


# --- renewal ---------------------------------------------------------------------------------------------------------


@dataclass
class Joined:
    """An enrolled device."""

    state: Path
    job: Job

    def key(self) -> bytes:
        return (self.state / "identity" / "device.pem").read_bytes()

    async def renew(self) -> None:
        await asyncio.to_thread(enrolment.renew, self.job)

    async def known(self) -> None:
        """Whether the server takes its certificate."""

        def ask() -> None:
            server = Server(self.job.server, credentials.of_device(self.state))
            server.get(topics.DEVICE_DESIRED.replace("{id}", DEVICE), 10_000)
            server.close()

        await asyncio.to_thread(ask)


@pytest.fixture
async def joined(fleet: Fleet, tmp_path: Path) -> Joined:
    job = await invited(fleet, tmp_path / "state")
    await enrol(job)
    return Joined(tmp_path / "state", replace(job, kind="renew"))


async def test_a_certificate_is_renewed_with_a_fresh_key(fleet: Fleet, joined: Joined) -> None:
    before, identity = joined.key(), await off(Identity, joined.state)
    fetcher = FetcherProcess(joined.state, DEVICE, identity.facts, Clock(), Stored())
    serial = identity.serial
    await fetcher.renew()  # by the child, as the agent does
    await off(identity.reload)
    assert identity.serial != serial
    assert before.split(b"-----END")[0] != joined.key().split(b"-----END")[0]
    assert not credentials.renewed_file(joined.state).exists()
    assert mode(credentials.pair_file(joined.state)) == 0o600
    await joined.known()
    listed = (await fleet.admin.get(f"/v1/devices/{DEVICE}"))["certificates"]
    assert {one["serial"] for one in listed} == {serial, identity.serial}


@pytest.mark.parametrize("cut", ["keep_pair", "take_over"])
async def test_a_cut_inside_a_renewal_leaves_a_device_that_is_known(
    joined: Joined, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = joined.key()
    with monkeypatch.context() as broken:

        def power(*_: Any) -> None:
            raise OSError("power cut")

        broken.setattr(credentials, cut, power)
        with pytest.raises(OSError, match="power cut"):
            await joined.renew()
    assert joined.key() == before
    await joined.known()
    await joined.renew()
    assert joined.key() != before
    await joined.known()


async def test_a_new_pair_that_the_server_does_not_know_is_given_up(fleet: Fleet, joined: Joined) -> None:
    """The server was restored from a backup between the two steps."""
    before, pair = joined.key(), credentials.renewed_file(joined.state)
    authority = await off(DeviceCA.open, fleet.folder / "keys")
    key = credentials.new_key("p256")
    csr = credentials.request_of(key, DEVICE).encode()
    issued = authority.issue(csr, DEVICE, datetime.now(UTC), timedelta(days=1))
    await off(credentials.keep_pair, pair, key, issued.pem.decode())
    with pytest.raises(Unreachable) as refused:
        await joined.renew()
    assert refused.value.code == "certificate_refused", refused.value.message
    assert joined.key() == before
    await joined.renew()
    await joined.known()


async def test_a_new_pair_of_another_authority_is_given_up(joined: Joined, tmp_path: Path) -> None:
    """The server began anew between the two steps, say: it does not even let that certificate in."""
    before, pair = joined.key(), credentials.renewed_file(joined.state)
    stranger = await off(DeviceCA.open, tmp_path / "other")
    key = credentials.new_key("p256")
    issued = stranger.issue(credentials.request_of(key, DEVICE).encode(), DEVICE, datetime.now(UTC), timedelta(days=1))
    await off(credentials.keep_pair, pair, key, issued.pem.decode())
    with pytest.raises(Unreachable) as refused:
        await joined.renew()
    assert refused.value.code == "certificate_refused", refused.value.message
    assert not pair.exists()
    assert joined.key() == before
    await joined.renew()
    await joined.known()


async def test_a_new_pair_waits_where_the_server_is_away(joined: Joined) -> None:
    pair = credentials.renewed_file(joined.state)
    away = replace(joined, job=replace(joined.job, server="https://127.0.0.1:9"))
    await off(pair.write_bytes, joined.key())
    with pytest.raises(Unreachable):
        await away.renew()
    assert pair.exists()


async def test_metadata_comes_from_a_server_whose_certificate_the_time_floor_calls_expired(
    joined: Joined,
) -> None:
    """A thief with all its keys has driven the floor up; the root that takes them away must get through."""
    identity, stored = await off(Identity, joined.state), Stored()
    clock = Clock()
    stored.meta["clock_floor"] = [0, rfc3339(clock.now() + 200 * 86_400)]
    fetcher = FetcherProcess(joined.state, DEVICE, identity.facts, clock, stored)
    with pytest.raises(Unreachable) as refused:
        await fetcher.poll()
    assert refused.value.code == "unknown_server"
    facts = await fetcher.refresh()
    assert facts["floors"]["root"] >= 1
    stored.meta["floors"] = {**facts["floors"], "clock_root": 2}  # a root that took the timestamp's keys away
    await fetcher.poll()


async def test_a_revoked_device_is_told_so(fleet: Fleet, joined: Joined) -> None:
    await fleet.admin.post(f"/v1/devices/{DEVICE}/revoke", {"reason": "gone"})
    with pytest.raises(Forbidden) as refused:
        await joined.renew()
    assert refused.value.code == "device_revoked"


async def test_an_expired_certificate_is_refused_and_a_token_for_the_device_helps(tmp_path: Path) -> None:
    now = [datetime.now(UTC)]
    async with running(tmp_path / "server", clock=lambda: now[0]) as fleet:
        job = await invited(fleet, tmp_path / "state")
        await enrol(job)
        device = Joined(tmp_path / "state", replace(job, kind="renew"))
        now[0] += timedelta(days=366)
        with pytest.raises(Forbidden) as refused:
            await device.renew()
        assert refused.value.code == "certificate_expired"
        now[0] -= timedelta(days=366)
        await enrol(await invited(fleet, device.state, device=DEVICE))
        await device.known()
