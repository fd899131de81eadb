"""A TUF repository in memory that can be rotated, rolled back and lied with: a source for Trust, and over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from interlock_shared import topics
from interlock_shared.documents import Director

TOP = ("root", "timestamp", "snapshot", "targets")
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)  # noqa: UP017
LATER = NOW + timedelta(days=365)


class Simulator:
    """`signed` holds what the next `publish` signs; `files` what is served. `keys`: the signers of each role."""

    def __init__(self, *, consistent: bool = True, ends: datetime = LATER) -> None:
        self.ends = ends
        self.keys: dict[str, list[CryptoSigner]] = {role: [CryptoSigner.generate_ed25519()] for role in TOP}
        root = Root(expires=ends, consistent_snapshot=consistent)
        for role in TOP:
            root.add_key(self.keys[role][0].public_key, role)
        self.signed: dict[str, Any] = {
            "root": root,
            "timestamp": Timestamp(expires=ends),
            "snapshot": Snapshot(expires=ends),
            "targets": Targets(expires=ends),
        }
        self.hashes = False
        self.files: dict[str, bytes] = {}
        self.payload: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.write("root")
        self.publish(bump=False)

    @property
    def root(self) -> bytes:
        """The first one."""
        return self.files["1.root.json"]

    def write(self, role: str) -> None:
        """Sign it as it is, and serve it."""
        metadata: Metadata[Any] = Metadata(self.signed[role])
        for key in self.keys[role]:
            metadata.sign(key, append=True)
        data, version = metadata.to_bytes(), self.signed[role].version
        name = quote(role, "")
        if role == "timestamp":
            self.files["timestamp.json"] = data
        elif role == "root" or self.signed["root"].consistent_snapshot:
            self.files[f"{version}.{name}.json"] = data
        else:
            self.files[f"{name}.json"] = data

    def publish(self, *roles: str, bump: bool = True) -> None:
        """The given targets roles, then snapshot and timestamp that name them; versions one up."""
        changed = roles or tuple(role for role in self.signed if role not in ("root", "timestamp", "snapshot"))
        for role in changed:
            if bump:
                self.signed[role].version += 1
            self.write(role)
            self.signed["snapshot"].meta[f"{role}.json"] = self._meta(role)
        self.snapshot(bump=bump)

    def snapshot(self, *, bump: bool = True) -> None:
        """Snapshot and timestamp alone."""
        self.signed["snapshot"].version += bump
        self.write("snapshot")
        self.signed["timestamp"].snapshot_meta = self._meta("snapshot")
        self.timestamp(bump=bump)

    def timestamp(self, *, bump: bool = True) -> None:
        """Timestamp alone."""
        self.signed["timestamp"].version += bump
        self.write("timestamp")

    def _meta(self, role: str) -> MetaFile:
        version = self.signed[role].version
        if not self.hashes:
            return MetaFile(version)
        consistent = self.signed["root"].consistent_snapshot
        data = self.files[f"{version}.{role}.json" if consistent else f"{role}.json"]
        return MetaFile.from_data(version, data, ["sha256"])

    def rotate(self, *roles: str, threshold: int = 1) -> None:
        """New keys for these, and the next root, signed by the old and the new keys of root."""
        before = list(self.keys["root"])
        root = self.signed["root"]
        for role in roles:
            for key in self.keys[role]:
                root.revoke_key(key.public_key.keyid, role)
            self.keys[role] = [CryptoSigner.generate_ed25519() for _ in range(threshold)]
            for key in self.keys[role]:
                root.add_key(key.public_key, role)
            root.roles[role].threshold = threshold
        self.next_root(before if "root" in roles else [])

    def next_root(self, also: list[CryptoSigner] | None = None) -> None:
        """One more root."""
        self.signed["root"].version += 1
        keys = self.keys["root"]
        self.keys["root"] = [*keys, *(also or [])]
        self.write("root")
        self.keys["root"] = keys

    def delegate(self, role: str, *paths: str, parent: str = "targets", terminating: bool = False) -> None:
        """A role below another one; nothing is published yet."""
        key = CryptoSigner.generate_ed25519()
        self.keys[role] = [key]
        self.signed[role] = Targets(expires=self.ends)
        above = self.signed[parent]
        if above.delegations is None:
            above.delegations = Delegations({}, {})
        above.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, paths=list(paths))
        above.add_key(key.public_key, role)

    def redelegate(self, role: str, parent: str = "targets") -> None:
        """Another key for a role below another one; nothing is published yet."""
        above = self.signed[parent]
        for key in self.keys[role]:
            above.revoke_key(key.public_key.keyid, role)
        self.keys[role] = [CryptoSigner.generate_ed25519()]
        above.add_key(self.keys[role][0].public_key, role)

    def add(self, path: str, data: bytes, role: str = "targets") -> None:
        """A target; nothing is published yet."""
        target = TargetFile.from_data(path, data, ["sha256"])
        self.signed[role].targets[path] = target
        parent, slash, name = path.rpartition("/")
        for where in (path, f"{parent}{slash}{target.hashes['sha256']}.{name}"):
            self.payload[where] = self.payload[quote(where, "/%")] = data

    def direct(self, epoch: int, key: CryptoSigner) -> None:
        """Who directs, as a target."""
        public = key.public_key
        director = Director(epoch=epoch, keys={public.keyid: public.to_dict()})
        self.add(topics.DIRECTOR_TARGET, director.model_dump_json(by_alias=True).encode())

    # --- a MetadataSource ---------------------------------------------------------------------------------------

    def metadata(self, name: str, limit: int) -> bytes | None:
        """A file."""
        del limit
        self.asked.append(name)
        return self.files.get(name)

    def director(self, limit: int) -> bytes:
        """The target director.json."""
        return self.payload[topics.DIRECTOR_TARGET][:limit]


@contextmanager
def served(simulator: Simulator) -> Iterator[str]:
    """The same over HTTP: `URL/metadata/…`, `URL/targets/…`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, name = self.path.lstrip("/").partition("/")
            data = simulator.metadata(name, 0) if kind == "metadata" else simulator.payload.get(name)
            if kind == "targets":
                simulator.asked.append(f"target {name}")
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_request(self, *_: Any) -> None:
            """Not in the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
