"""Who may ask this model, by the owner's settings: users of this machine, bearer tokens, certificates of clients.

Rules of the file:
- What is set must hold, all of it. What cannot be read lets nobody in.
- `/v2/health/*` is open to whoever can connect: probes have no token. They have no body either.
- A token is compared by its SHA-256, with every digest of the file, in constant time; the file is the host's alone.
- Files are looked at again when they change: a renewed certificate needs no restart. One that is half replaced changes
  nothing: the former stays until both halves fit.
- TLS 1.3 and no session is resumed: a certificate is looked at in each connection.
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import os
import pwd
import re
import socket
import ssl
import stat
import struct
from collections.abc import Callable, Iterable
from typing import Any

from interlock_agent.host.front import peers
from interlock_agent.host.front.http import Malformed, Request
from interlock_agent.host.wire import NO_USER

HEALTH = (b"/v2/health/live", b"/v2/health/ready")
MAX_TOKENS_BYTES = 1024 * 1024
SO_PEERGROUPS = 59  # socket(7); Python has no name for it
GROUPS_BYTES = 1024  # the most that Python asks for: 256 groups; of a user with more, the first one counts alone
_TOKEN_LINE = re.compile(r"([0-9a-f]{64})(\s.*)?")

Stamp = tuple[tuple[int, int, int], ...]


class Access:
    """The settings of one unit, as files and names say at the moment. `load` blocks."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._stamp: Stamp | None = None
        self._users: frozenset[int] = frozenset()
        self._groups: frozenset[int] = frozenset()
        self._digests: tuple[str, ...] = ()
        self._current: ssl.SSLContext | None = None
        self.trouble = "not read yet"
        self._told = ""

    # --- what the owner has set -------------------------------------------------------------------------------------

    def load(self) -> str:
        """Read what has changed; what is wrong is told once, else "". A certificate that is being replaced: the former
        is good still. Tokens that cannot be read are not."""
        stamp = self._look()
        if stamp == self._stamp:
            return ""
        wrong = ""
        try:
            self._users, self._groups, self._digests = self._ids("users"), self._ids("groups"), self._read_tokens()
            self.trouble = ""
        except (OSError, ValueError, KeyError) as unreadable:
            wrong = self.trouble = str(unreadable)
        try:
            self._current = self._context()
        except (OSError, ValueError) as unreadable:
            wrong = f"certificate, key or client_ca: {unreadable}"
            if self._current is None:
                self.trouble = wrong
        self._stamp = stamp if not wrong else None
        new, self._told = wrong != self._told, wrong
        return f"access: {wrong}" if wrong and new else ""

    def _look(self) -> Stamp:
        found = []
        for name in _FILES:
            try:
                one = os.stat(self._settings.get(name) or "")
                found.append((one.st_mtime_ns, one.st_ino, one.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def _ids(self, kind: str) -> frozenset[int]:
        def known(name: Any) -> int:
            if isinstance(name, int):
                return name
            return pwd.getpwnam(name).pw_uid if kind == "users" else grp.getgrnam(name).gr_gid

        return frozenset(known(name) for name in self._settings.get(kind) or ())

    def _read_tokens(self) -> tuple[str, ...]:
        path = self._settings.get("tokens")
        if not path:
            return ()
        with open(path, encoding="utf-8") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ValueError(f"{path} can be read by others: chmod 600")
            text = file.read(MAX_TOKENS_BYTES)
        digests = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                match = _TOKEN_LINE.fullmatch(line.strip())
                if match is None:
                    raise ValueError(f"{path}:{number}: a line is a SHA-256 in hexadecimal and a name")
                digests.append(match[1])
        return tuple(digests)

    def _context(self) -> ssl.SSLContext | None:
        if not self._settings.get("certificate"):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(self._settings["certificate"], self._settings.get("key") or None)
        if self._settings.get("client_ca"):
            context.load_verify_locations(self._settings["client_ca"])
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def tls(self) -> ssl.SSLContext | None:
        """For the server, once loaded: each handshake takes the newest certificate."""
        outer = self._context()
        if outer is not None:
            outer.sni_callback = self._newest
        return outer

    def _newest(self, connection: Any, _name: str | None, _outer: ssl.SSLContext) -> None:
        if self._current is not None:
            connection.context = self._current

    # --- who asks ---------------------------------------------------------------------------------------------------

    def admit(self, transport: Any, request: Request) -> None:
        """Before a request's body is taken. Raises Malformed 401, 403 or 503."""
        if request.method == b"GET" and request.target.split(b"?", 1)[0] in HEALTH and not _has_body(request):
            return
        if self.trouble:
            raise Malformed(503, "access_unknown", "the owner's settings of access cannot be read")
        if (self._users or self._groups) and not self._user_may(transport.get_extra_info("socket")):
            raise Malformed(403, "forbidden", "this user may not ask this model")
        names = self._settings.get("client_names")
        if names and not set(names) & set(_names(transport.get_extra_info("peercert") or {})):
            raise Malformed(403, "forbidden", "the owner of this certificate may not ask this model")
        if self._settings.get("tokens"):
            self._check_token(request.headers.get(b"authorization", b""))

    def admit_call(self, user: Callable[[], int], authorization: bytes) -> None:
        """The same for gRPC, which knows users and tokens alone. Raises Malformed 401, 403 or 503."""
        if self.trouble:
            raise Malformed(503, "access_unknown", "the owner's settings of access cannot be read")
        if self._settings.get("users") and user() not in self._users:
            raise Malformed(403, "forbidden", "this user may not ask this model")
        if self._settings.get("tokens"):
            self._check_token(authorization)

    def _user_may(self, connection: Any) -> bool:
        user = peers.user(connection)
        if user != NO_USER and user in self._users:
            return True
        return bool(self._groups and self._groups.intersection(_groups(connection)))

    def _check_token(self, header: bytes) -> None:
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise Malformed(401, "no_token", "send Authorization: Bearer with a token of this model")
        digest = hashlib.sha256(token.strip()).hexdigest()
        good = False
        for known in self._digests:
            good |= hmac.compare_digest(known, digest)
        if not good:
            raise Malformed(401, "invalid_token", "no such token, or no longer")


def _has_body(request: Request) -> bool:
    return request.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in request.headers


_FILES = ("tokens", "certificate", "key", "client_ca")


def _names(certificate: dict[str, Any]) -> Iterable[str]:
    """Common name and alternative names of a client's certificate."""
    for part in certificate.get("subject", ()):
        yield from (value for kind, value in part if kind == "commonName")
    yield from (value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI", "email"))


def _groups(connection: Any) -> set[int]:
    """Of the process at the other end of a Unix socket, as it connected."""
    if connection.family != socket.AF_UNIX:
        return set()
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return set()
    try:
        more = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES)
    except OSError:
        more = b""
    return {struct.unpack("3I", raw)[2], *struct.unpack(f"{len(more) // 4}I", more)}
