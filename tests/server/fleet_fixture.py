"""A fleet for tests: offline keys with their metadata, releases, a server on free ports, devices that speak MQTT."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from interlock_server.__main__ import serve
from interlock_server.config import Settings
from interlock_shared import canonical, manifest, topics, trust
from interlock_shared.documents import Desired

EXPIRES = datetime.now(UTC).replace(microsecond=0) + timedelta(days=365)
MODEL = "detector"
Json = dict[str, Any]


def the_manifest(version: str = "1.0.0", content: bytes = b"weights", model: str = MODEL) -> manifest.Manifest:
    """A small manifest: one file of one segment."""
    digest = canonical.sha256(content)
    tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
    return manifest.from_document(
        {
            "schema": manifest.SCHEMA,
            "model": model,
            "version": version,
            "signature": {"inputs": [tensor], "outputs": [{**tensor, "name": "y"}]},
            "variants": [{"name": "fp32", "file": "model.onnx", "reference": True}],
            "files": [
                {
                    "name": "model.onnx",
                    "size": len(content),
                    "sha256": digest,
                    "segments": [{"sha256": digest, "size": len(content)}],
                }
            ],
        }
    )


@dataclass
class Offline:
    """The keys that are not the server's, and the newest metadata signed with them."""

    root_key: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    targets_key: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    release_key: CryptoSigner = field(default_factory=CryptoSigner.generate_ed25519)
    targets_version: int = 1
    release: Targets = field(default_factory=lambda: Targets(version=1, expires=EXPIRES))

    def root(self, online: Json, version: int = 1) -> Json:
        """Root metadata that names the server's keys."""
        more = {topics.ROOT_EXTENSION: {"tls_ca": online["tls_ca"]}}
        root = Root(version=version, expires=EXPIRES, consistent_snapshot=True, unrecognized_fields=more)
        root.add_key(self.root_key.public_key, "root")
        root.add_key(self.targets_key.public_key, "targets")
        for role in ("snapshot", "timestamp"):
            root.add_key(SSlibKey.from_dict(online[role]["keyid"], dict(online[role]["key"])), role)
        return sign(root, self.root_key)

    def targets(self, director: Json, models: tuple[str, ...] = (MODEL,), version: int = 1) -> Json:
        """Targets metadata: director.json, and one role a model."""
        data = canonical.encode(director)
        key = self.release_key.public_key
        roles = {
            topics.release_role(model): DelegatedRole(
                topics.release_role(model), [key.keyid], 1, True, paths=[f"{model}/*/manifest.json"]
            )
            for model in models
        }
        return sign(
            Targets(
                version=version,
                expires=EXPIRES,
                targets={topics.DIRECTOR_TARGET: TargetFile.from_data(topics.DIRECTOR_TARGET, data, ["sha256"])},
                delegations=Delegations({key.keyid: key}, roles),
            ),
            self.targets_key,
        )

    def trust(self, online: Json) -> Json:
        """The first upload."""
        director = {
            "schema": "interlock.director/1",
            "epoch": online["director_epoch"],
            "keys": {online["director"]["keyid"]: online["director"]["key"]},
        }
        return {
            "root": self.root(online),
            "targets": self.targets(director),
            "delegated": {topics.release_role(MODEL): sign(self.release, self.release_key)},
            "director": director,
        }

    def next_release(self, what: manifest.Manifest, key: CryptoSigner | None = None, version: int = 0) -> Json:
        """The body of a publish; `published` takes it over as the newest."""
        following = Targets.from_dict(json.loads(json.dumps(self.release.to_dict())))
        following.version = version or self.release.version + 1
        name, data = topics.target_name(what.model, what.version), manifest.to_bytes(what)
        following.targets[name] = TargetFile.from_data(name, data, ["sha256"])
        return release_body(what, sign(following, key or self.release_key))

    def published(self, body: Json) -> None:
        """The server has taken this."""
        self.release = Targets.from_dict(json.loads(json.dumps(body["metadata"]["signed"])))


def sign(signed: Any, *keys: CryptoSigner) -> Json:
    """TUF metadata as a JSON object."""
    metadata: Metadata[Any] = Metadata(signed)
    for key in keys:
        metadata.sign(key, append=True)
    return dict(metadata.to_dict())


def release_body(what: manifest.Manifest, metadata: Json) -> Json:
    """The body of `POST /v1/releases`."""
    return {"manifest": base64.b64encode(manifest.to_bytes(what)).decode(), "metadata": metadata}


PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def csr(key: PrivateKey) -> str:
    """A signing request, as the agent makes it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whoever")])
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def pem(key: PrivateKey) -> bytes:
    """PKCS#8."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form)


@dataclass
class Client:
    """Asks the API."""

    session: aiohttp.ClientSession
    url: str
    token: str | None

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """(status, JSON document)."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers.update(more.pop("headers", {}))
        if body is not None:
            more["json"] = body
        async with self.session.request(method, self.url + path, headers=headers, **more) as response:
            return response.status, await response.json(content_type=None)

    async def get(self, path: str, **more: Any) -> Any:
        """The document of a good answer."""
        status, document = await self.ask("GET", path, **more)
        assert status == 200, document
        return document

    async def post(self, path: str, body: Any = None, **more: Any) -> Any:
        """The document of a good answer."""
        status, document = await self.ask("POST", path, body, **more)
        assert status in {200, 201}, document
        return document


@dataclass
class Device:
    """What the agent will be: a key, a certificate, events with numbers."""

    id: str
    key: CryptoSigner
    pair: Path  # key and certificate
    ca: str  # of the server
    host: str
    port: int
    epoch: str = "epoch-0001"
    number: int = 0

    def event(self, kind: str, number: int | None = None, **more: Any) -> bytes:
        """The next event, or the one of that number."""
        if number is None:
            self.number += 1
            number = self.number
        document = {
            "schema": "interlock.event/1",
            "device": self.id,
            "epoch": self.epoch,
            "number": number,
            "at": "2025-01-01T00:00:00Z",
            "kind": kind,
            **more,
        }
        return canonical.encode(document)

    def reported(self, number: int, **more: Any) -> bytes:
        """A report."""
        document = {
            "schema": "interlock.reported/1",
            "device": self.id,
            "number": number,
            "outbox_epoch": self.epoch,
            "outbox_floor": 1,
            "agent": "0.1.0",
            "host": "0.1.0",
            "desired": None,
            "fingerprint": {},
            "fingerprint_sha256": "0" * 64,
            "units": {},
            **more,
        }
        return canonical.encode(document)

    def topic(self, kind: str) -> str:
        """One of its topics."""
        return topics.device_topic(kind, self.id)

    def tls(self) -> ssl.SSLContext:
        """Shows the certificate, believes this server alone."""
        context = ssl.create_default_context(cadata=self.ca)
        context.load_cert_chain(self.pair)
        return context

    def connection(self, **more: Any) -> aiomqtt.Client:
        """A connection to the broker, not yet open."""
        given = {"identifier": self.id, "tls_context": self.tls(), **more}
        return aiomqtt.Client(self.host, self.port, protocol=aiomqtt.ProtocolVersion.V311, **given)

    @asynccontextmanager
    async def online(self, **more: Any) -> AsyncIterator[Online]:
        """Connected, subscribed to its own topics."""
        async with self.connection(**more) as client:
            for kind in topics.DEVICE_MAY_SUBSCRIBE:
                await client.subscribe(self.topic(kind), qos=1)
            yield Online(self, client)


@dataclass
class Online:
    """A connected device."""

    device: Device
    client: aiomqtt.Client
    acks: list[tuple[str, int]] = field(default_factory=list)
    desired: list[Json] = field(default_factory=list)

    async def send(self, kind: str, payload: bytes) -> None:
        """QoS 1, as the agent does."""
        await self.client.publish(self.device.topic(kind), payload, qos=1, retain=kind in {"reported", "presence"})

    async def until(self, ready: Callable[[Online], bool], seconds: float = 10.0) -> None:
        """Listen until `ready` says so."""
        async with asyncio.timeout(seconds):
            while not ready(self):
                message = await anext(aiter(self.client.messages))
                document = json.loads(message.payload)
                if str(message.topic).endswith("/ack"):
                    ack = json.loads(base64.b64decode(document["payload"]))
                    assert ack["device"] == self.device.id
                    self.acks.append((ack["epoch"], ack["upto"]))
                else:
                    self.desired.append(document)

    async def acked(self, upto: int) -> None:
        """Until everything up to this number is acknowledged."""
        await self.until(lambda one: (one.device.epoch, upto) in one.acks)


def opened(envelope: Json, online: Json, device: str, last: tuple[int, int] = (0, 0)) -> Desired | None:
    """A desired document as a device accepts it."""
    keys = trust.load_keys({online["director"]["keyid"]: online["director"]["key"]})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return trust.open_desired(
        canonical.encode(envelope), keys, device=device, last=last, epoch=online["director_epoch"], now=now
    )


@dataclass
class Fleet:
    """A running server, its admin, and the offline keys."""

    folder: Path
    admin: Client
    broker: tuple[str, int]
    offline: Offline
    online: Json
    token: str

    async def put(
        self, content: bytes, form: str = "identity", size: int | None = None, **more: Any
    ) -> tuple[int, Any]:
        """Upload a segment."""
        sha256 = more.pop("sha256", canonical.sha256(content))
        headers = {"Interlock-Form": form, "Interlock-Size": str(len(content) if size is None else size)}
        return await self.admin.ask("PUT", f"/v1/blobs/{sha256}", data=more.pop("data", content), headers=headers)

    async def publish(self, version: str, content: bytes = b"weights") -> Json:
        """Publish a release of MODEL."""
        status, _ = await self.put(content)
        assert status in {200, 201}
        body = self.offline.next_release(the_manifest(version, content))
        document: Json = await self.admin.post(topics.RELEASES, body)
        self.offline.published(body)
        return document

    async def enrol(self, name: str, **labels: str) -> Device:
        """A new device."""
        invitation = await self.admin.post(topics.DEVICE_TOKENS, {"labels": labels, "device": name})
        key = ec.generate_private_key(ec.SECP256R1())
        body = {"token": invitation["token"], "csr": csr(key), "name": None, "agent": "0.1.0"}
        return self.device(await self.admin.post(topics.ENROL, body), key)

    def device(self, identity: Json, key: PrivateKey) -> Device:
        """The device of an enrolment's answer."""
        pair = self.folder.parent / f"{identity['device']}-{identity['keyid'][:8]}.pem"
        pair.write_bytes(pem(key) + identity["certificate"].encode())
        host, _, port = identity["broker"].rpartition("//")[2].rpartition(":")
        return Device(identity["device"], CryptoSigner(key), pair, self.online["tls_ca"], host, int(port))

    def client(self, token: str | None) -> Client:
        """Somebody else's."""
        return Client(self.admin.session, self.admin.url, token)


@asynccontextmanager
async def running(
    folder: Path,
    offline: Offline | None = None,
    token: str | None = None,
    ports: tuple[int, int] = (0, 0),
    broker: str | None = None,
    **more: Any,
) -> AsyncIterator[Fleet]:
    """A server on that folder; a new one gets its trust metadata."""
    settings = Settings(folder, ("127.0.0.1", ports[0]), broker, ("127.0.0.1", ports[1]), None, None)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(settings, **more))
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=server.tls_ca))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        admin = Client(session, server.url, server.token or token)
        assert admin.token is not None
        online = await admin.get(topics.ONLINE_KEYS)
        host, _, port = server.broker.rpartition("//")[2].rpartition(":")
        fleet = Fleet(folder, admin, (host, int(port)), offline or Offline(), online, admin.token)
        if offline is None:
            await admin.post(topics.TRUST, fleet.offline.trust(online))
        yield fleet


def digest(data: bytes) -> str:
    """Hex SHA-256."""
    return hashlib.sha256(data).hexdigest()
