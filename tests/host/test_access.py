"""Who may ask, by the owner's settings: users, tokens, certificates; renewed without a restart, else closed."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from interlock_agent import client
from interlock_agent.config import Unit
from interlock_agent.host import messages
from tests.host.clients import Connection, request
from tests.host.rig import UNIT, OrderError, Rig, running, until

ASK = request("/v2", method="GET")


# --- what makes no sense is refused by name ---

TLS = {"certificate": "/c.pem", "key": "/k.pem"}


@pytest.mark.parametrize(
    ("unit", "complaint"),
    [
        ({"listen": "0.0.0.0:8500"}, "open to other machines: set access.certificate"),
        ({"listen": "[::]:8500"}, "open to other machines"),
        ({"listen": "192.0.2.7:8500", "access": {"tokens": "/t"}}, "set access.certificate"),
        ({"listen": "device.example:8500", "access": TLS}, "access.tokens or access.client_ca"),
        ({"listen": "127.0.0.1:1", "access": {"groups": ["video"]}}, "only a Unix socket knows"),
        ({"access": {"client_ca": "/ca.pem"}}, "need access.certificate"),
        ({"access": {**TLS, "client_names": ["x"]}}, "needs access.client_ca"),
        ({"access": {"tokens": "tokens"}}, "no absolute path"),
        ({"access": {"socket_mode": "rw"}}, "socket_mode"),
        ({"access": {"users": [-1]}}, "users"),
        ({"grpc_listen": "0.0.0.0:8501"}, "not a port of this machine alone"),
        ({"grpc_listen": "127.0.0.1:0"}, "not a port of this machine alone"),
        ({"grpc_listen": "unix:/run/x.sock"}, "not a port of this machine alone"),
        ({"grpc_listen": "localhost:8501", "access": {"socket_mode": "600"}}, "exclude each other"),
        ({"grpc_listen": "localhost:8501", "access": TLS}, "exclude each other"),
        ({"listen": "127.0.0.1:8500", "grpc_listen": "127.0.0.1:8500"}, "a port of its own"),
        ({"queue_max": -1}, "queue_max"),
        ({"queue_s": 0}, "queue_s"),
    ],
)
def test_settings_that_make_no_sense(unit: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Unit.model_validate(unit)


@pytest.mark.parametrize(
    "unit",
    [
        {"listen": "127.0.0.1:8500"},
        {"listen": "[::1]:8500"},
        {"listen": "localhost:8500"},
        {"listen": "unix:/run/x.sock"},
        {"listen": "0.0.0.0:8500", "access": {**TLS, "client_ca": "/ca.pem"}},
        {"listen": "[::]:8500", "access": {**TLS, "tokens": "/t"}},
        {"grpc_listen": "[::1]:8501", "access": {"tokens": "/t", "users": ["root"]}},
    ],
)
def test_settings_that_do(unit: dict[str, Any]) -> None:
    assert Unit.model_validate(unit).options()["access"] == unit.get("access", {})


# --- a host, and one unit for each case ---


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="il-", dir="/tmp") as folder:
        async with running(Path(folder)) as one:
            yield one


async def unit(rig: Rig, name: str, listen: str = "", **access: Any) -> str:
    """A unit with those settings; its address."""
    listen = listen or f"unix:{rig.folder}/{name}.sock"
    return str((await rig.agent.order(messages.Configure(name, listen, {"access": access})))["address"])


async def status(address: str, raw: bytes = ASK) -> int:
    async with Connection(address) as connection:
        return (await connection.ask(raw)).status


module_loop = pytest.mark.asyncio(loop_scope="module")


@module_loop
async def test_an_address_of_other_machines_is_refused_by_the_host_too(rig: Rig) -> None:
    with pytest.raises(OrderError, match="open to other machines"):
        await unit(rig, "wide", "0.0.0.0:0")


@module_loop
async def test_an_address_that_is_taken_back_is_listened_on_no_longer(rig: Rig, tmp_path: Path) -> None:
    ours = Authority(tmp_path, "moving")
    access = {"certificate": str(ours.issue("localhost")), "client_ca": str(ours.file)}
    wide = await unit(rig, "moving", "0.0.0.0:0", **access)
    with pytest.raises(OrderError, match="open to other machines"):
        await unit(rig, "moving", "0.0.0.0:0")
    port = wide.rpartition(":")[2]
    narrow = await unit(rig, "moving", f"127.0.0.1:{port}")
    assert (narrow, await status(narrow)) == (f"127.0.0.1:{port}", 200), "the same port, and only here"
    with pytest.raises(OrderError, match="No such file"):
        await unit(rig, "moving", f"unix:{tmp_path}/there-is-none/x.sock")
    assert await status(narrow) == 200, "as it was"
    moved = await unit(rig, "moving", f"unix:{rig.folder}/moved.sock")
    assert await status(moved) == 200
    with pytest.raises(ConnectionRefusedError):
        await status(narrow)


@pytest.mark.known_user
@module_loop
async def test_users_and_groups_of_this_machine(rig: Rig) -> None:
    me, other = os.getuid(), os.getuid() + 1
    assert await status(await unit(rig, "mine", users=[me])) == 200
    others = await unit(rig, "others", users=[other])
    assert await status(others) == 403
    assert await status(others, request("/v2/health/live", method="GET")) == 200, "probes"
    assert await status(others, request("/v2/health/ready", method="GET")) == 503, "open, and nothing is loaded"
    assert await status(others, request("/v2/health/live", b"x" * 1000, method="GET")) == 403, "probes have no body"
    assert await status(await unit(rig, "group", groups=[os.getgid()], users=[other])) == 200
    assert await status(await unit(rig, "wrong", groups=[os.getgid() + 54321])) == 403
    assert await status(await unit(rig, "port", "127.0.0.1:0", users=[me])) == 200, "the kernel's table tells"
    assert await status(await unit(rig, "ports", "127.0.0.1:0", users=[other])) == 403
    assert await status(await unit(rig, "nobody", users=["no-such-user-here"])) == 503, "closed, and it says why"
    log = rig.folder / "host.log"
    await until(lambda: "no-such-user-here" in log.read_text(), "the front's reason in the host's log")


@module_loop
async def test_the_mode_and_group_of_a_sockets_file(rig: Rig) -> None:
    address = await unit(rig, "mode", socket_mode="0640", socket_group=os.getgid())
    found = os.stat(address[5:])
    assert (found.st_mode & 0o777, found.st_gid) == (0o640, os.getgid())


@module_loop
async def test_tokens(rig: Rig) -> None:
    file = rig.folder / "tokens"
    digests = [hashlib.sha256(one).hexdigest() for one in (b"first", b"second")]
    file.write_text(f"# of the camera and the door\n{digests[0]} camera\n{digests[1]}\n")
    file.chmod(0o600)
    address = await unit(rig, "tokens", tokens=str(file))

    def bearing(token: str) -> bytes:
        return request("/v2", method="GET", Authorization=f"Bearer {token}")

    async with Connection(address) as connection:
        assert (await connection.ask(bearing("first"))).status == 200
        assert (await connection.ask(bearing("second"))).status == 200
        reply = await connection.ask(ASK)
        assert (reply.status, reply.json()["code"], reply.headers["www-authenticate"]) == (401, "no_token", "Bearer")
    async with Connection(address) as connection:
        reply = await connection.ask(bearing("third"))
        assert (reply.status, reply.json()["code"]) == (401, "invalid_token")
    large = b"POST /v2/models/tokens/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"
    assert await status(address, large) == 401, "before a byte of the body is taken"
    file.write_text(f"{digests[1]} door\n")
    assert await changed(lambda: status(address, bearing("first")), 401), "one that was taken out, without a restart"
    assert await status(address, bearing("second")) == 200
    file.chmod(0o644)
    file.write_text(f"{digests[0]} camera\n{digests[1]} door\n")
    assert await changed(lambda: status(address, bearing("second")), 503), "a file for all to read lets nobody in"
    file.chmod(0o600)
    assert await changed(lambda: status(address, bearing("second")), 200)
    assert await unit(rig, "tokens") == address
    assert await changed(lambda: status(address), 200), "the owner has taken the limit away"


async def changed(ask: Any, wanted: int) -> bool:
    """Whether it comes to that."""

    async def look() -> bool:
        while True:
            try:
                if await ask() == wanted:
                    return True
            except (OSError, EOFError):
                pass
            await asyncio.sleep(0.05)

    return await asyncio.wait_for(look(), 30)


class Authority:
    """Makes certificates."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key, self._folder = ec.generate_private_key(ec.SECP256R1()), folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        own = self._make(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.file.write_bytes(own)

    def _make(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> bytes:
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> Path:
        """Certificate and key in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._make(subject, key.public_key(), x509.SubjectAlternativeName([x509.DNSName(name)]))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self._folder / f"{name}-{os.urandom(3).hex()}.pem"
        path.write_bytes(certificate + private)
        return path


def trusting(authority: Authority, own: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if own:
        context.load_cert_chain(own)
    return context


async def over_tls(address: str, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Status, and the certificate of the host. Raises OSError where nobody is let in."""
    port = int(address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    try:
        writer.write(ASK)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return int(head.split()[1]), der
    finally:
        writer.close()


@module_loop
async def test_certificates(rig: Rig, tmp_path: Path) -> None:
    ours, foreign = Authority(tmp_path, "ours"), Authority(tmp_path, "foreign")
    host = tmp_path / "host.pem"
    host.write_bytes(ours.issue("localhost").read_bytes())
    camera, door, stranger = ours.issue("camera"), ours.issue("door"), foreign.issue("camera")
    address = await unit(
        rig, "tls", "127.0.0.1:0", certificate=str(host), client_ca=str(ours.file), client_names=["camera"]
    )
    good, first = await over_tls(address, trusting(ours, camera))
    assert good == 200
    assert (await over_tls(address, trusting(ours, door)))[0] == 403, "a good certificate of another name"
    for wrong in (trusting(ours), trusting(ours, stranger)):
        with pytest.raises((OSError, EOFError)):
            await over_tls(address, wrong)
    with pytest.raises((OSError, EOFError, AssertionError)):
        await status(address)  # no TLS at all
    host.write_bytes(b"half of a certificate")
    assert await changed(lambda: asyncio.sleep(0, "certificate, key" in (rig.folder / "host.log").read_text()), True)
    assert (await over_tls(address, trusting(ours, camera)))[1] == first, "the former one is good still"
    host.write_bytes(ours.issue("localhost").read_bytes())

    async def renewed() -> int:
        return int((await over_tls(address, trusting(ours, camera)))[1] != first)

    assert await changed(renewed, 1), "without a restart"
    ours.file.write_bytes(foreign.file.read_bytes())

    async def refused() -> int:
        try:
            await over_tls(address, trusting(foreign_host, camera))
        except (OSError, EOFError):
            return 1
        return 0

    foreign_host = Authority(tmp_path, "again")
    foreign_host.file.write_bytes(host.read_bytes())
    assert await changed(refused, 1), "the authority of clients was replaced"


@module_loop
async def test_the_client_in_python_brings_token_and_certificate(rig: Rig, tmp_path: Path) -> None:
    ours = Authority(tmp_path, "mine")
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"open sesame").hexdigest())
    tokens.chmod(0o600)
    await rig.confirmed(1)
    access = {"certificate": str(ours.issue("localhost")), "client_ca": str(ours.file), "tokens": str(tokens)}
    address = await unit(rig, UNIT, "127.0.0.1:0", **access)
    context = trusting(ours, ours.issue("camera"))

    def ask() -> float:
        with client.Model(f"localhost:{address.rpartition(':')[2]}", UNIT, token="open sesame", tls=context) as model:
            return float(model.infer({"x": np.ones((1, 4), np.float32)})["y"][0, 0])

    assert await asyncio.to_thread(ask) == 1.0
