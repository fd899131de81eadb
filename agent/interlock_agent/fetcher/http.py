"""The update server as a source: metadata, manifest, and segments by HTTP range.

http.client rather than a pool: a segment is received straight into the buffer that is hashed and written, without a
copy. A connection that breaks inside a segment goes on from the byte it had come to (RFC 9110, §14).
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from interlock_agent.fetcher.pace import PacedResponse
from interlock_shared import topics
from interlock_shared.errors import InterlockError, Never, Refused, Unreachable, Untrusted, from_wire
from interlock_shared.limits import DOCUMENT_MAX_BYTES, SEGMENT_MAX_BYTES
from interlock_shared.segments import FORMS, IDENTITY

TIMEOUT_S = 30.0  # without a byte
RESUMES = 5  # of one segment, before the whole fetch goes back to the agent's backoff
CHUNK = 1024 * 1024  # received at once: hashed while it is still in the cache
OVERHEAD = 64 * 1024  # by which a compressed form may be longer than its content
_BROKEN = (OSError, http.client.HTTPException)
_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)$")


def _told(broken: BaseException) -> str:
    return str(broken) or type(broken).__name__


class Server:
    """One connection to the update server; each thread has its own. `tls`: whom to believe, and by what this device is
    known. `floor`: what has expired before this time (seconds since the epoch) is not believed."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None, floor: float = 0.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Never(f"not an address of a server: {url}", code="bad_server")
        self._host, self._port, self._tls = parts.hostname, parts.port, tls if parts.scheme == "https" else None
        if parts.scheme == "https" and tls is None:
            raise Untrusted("no TLS authority is known: the device was not enrolled", code="not_enrolled")
        self._prefix, self._floor = parts.path.rstrip("/"), floor
        self._url = url
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._tls is None:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
            else:
                secure = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._tls)
                secure.connect()
                self._connection = secure
                self._check_dates(secure.sock)
            self._connection.response_class = PacedResponse
        return self._connection

    def _check_dates(self, sock: Any) -> None:
        """OpenSSL was told not to: the clock may be wrong. The floor is not."""
        ends = (sock.getpeercert() or {}).get("notAfter")
        if ends and ssl.cert_time_to_seconds(str(ends)) < self._floor:
            self.close()
            raise Unreachable(f"{self._url}: its certificate expired at {ends}", code="unknown_server")

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _get(self, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        fresh = self._connection is None
        try:
            return self._send("GET", path, headers)
        except _BROKEN as broken:
            self.close()
            if fresh:
                raise self._broken(broken) from None
        try:  # a kept connection may have been closed by the server meanwhile
            return self._send("GET", path, headers)
        except _BROKEN as broken:
            self.close()
            raise self._broken(broken) from None

    def _broken(self, broken: BaseException) -> Unreachable:
        """What a failed exchange means. TLS 1.3 tells a client that it was refused only after it has asked."""
        if isinstance(broken, ssl.SSLCertVerificationError):
            return Unreachable(f"{self._url}: {broken.verify_message}", code="unknown_server")
        reason = str(getattr(broken, "reason", "") or "")
        if isinstance(broken, ssl.SSLError) and "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason):
            words = reason.partition("ALERT_")[2].lower().replace("_", " ")
            return Unreachable(f"{self._url}: refuses this device's certificate: {words}", code="certificate_refused")
        return Unreachable(f"{self._url}: {_told(broken)}")

    def _send(
        self, method: str, path: str, headers: dict[str, str] | None, body: bytes | None = None
    ) -> http.client.HTTPResponse:
        connection = self._connect()
        connection.request(method, self._prefix + path, body, headers=headers or {})
        return connection.getresponse()

    def post(self, path: str, document: dict[str, Any], limit: int) -> dict[str, Any]:
        """Send a document once, get one. Raises Unreachable, and what the server refuses with."""
        try:
            response = self._send("POST", path, {"Content-Type": "application/json"}, json.dumps(document).encode())
            if response.status >= 300:
                raise self._refuse(response, path)
            return dict(json.loads(response.read(limit)))
        except _BROKEN as broken:
            self.close()
            raise self._broken(broken) from None
        except ValueError:
            raise Never(f"{self._url}: its answer is not what was expected", code="bad_answer") from None

    def _refuse(self, response: http.client.HTTPResponse, path: str) -> InterlockError:
        """The error of an answer that is not a success."""
        try:
            body = response.read(DOCUMENT_MAX_BYTES)
        except _BROKEN:
            body = b""
        self.close()
        try:
            document = json.loads(body)
            error = from_wire(document) if isinstance(document, dict) and "code" in document else None
        except ValueError:
            error = None
        if response.status >= 500 or response.status in (408, 429):
            message = error.message if error else f"answered {response.status} for {path}"
            return Unreachable(f"{self._url}: {message}", code="server_busy")
        if error is not None and isinstance(error, Never | Refused):
            return error
        return Never(f"{self._url}: answered {response.status} for {path}", code="server_refused")

    def get(self, path: str, limit: int) -> bytes | None:
        """A small resource whole; None for 404. Raises Unreachable, Untrusted above `limit`."""
        response = self._get(path)
        if response.status == 404:
            response.read(DOCUMENT_MAX_BYTES)
            return None
        if response.status != 200:
            raise self._refuse(response, path)
        try:
            data = response.read(limit + 1)
        except _BROKEN as broken:
            self.close()
            raise self._broken(broken) from None
        if len(data) > limit:
            self.close()
            raise Untrusted(f"{path}: more than {limit} bytes", code="too_large")
        return data

    # --- metadata -----------------------------------------------------------------------------------------------

    def metadata(self, name: str, limit: int) -> bytes | None:
        """A TUF metadata file."""
        return self.get(topics.METADATA.replace("{name}", name), limit)

    def director(self, limit: int) -> bytes:
        """The target director.json."""
        data = self.get(topics.METADATA.replace("{name}", f"target/{topics.DIRECTOR_TARGET}"), limit)
        if data is None:
            raise Untrusted("director.json is not there", code="metadata_missing")
        return data

    # --- segments -----------------------------------------------------------------------------------------------

    def segment(self, sha256: str, size: int, sink: Callable[[memoryview], None]) -> tuple[bytes | memoryview, str]:
        """A segment's transport form, whole, and its name. An identity form is handed to `sink` while it arrives.

        Raises Unreachable after RESUMES breaks, Untrusted when it is longer than the manifest allows.
        """
        path = topics.BLOB.replace("{sha256}", sha256)
        buffer = memoryview(bytearray(min(size + OVERHEAD, SEGMENT_MAX_BYTES + OVERHEAD)))
        got, total, form = 0, -1, IDENTITY
        for left in range(RESUMES, -1, -1):
            response = self._get(path, {"Range": f"bytes={got}-"} if got else None)
            if response.status != (206 if got else 200):
                raise self._refuse(response, path)
            form, total = self._shape(response, path, got)
            if total > len(buffer) or (form == IDENTITY and total != size):
                self.close()
                raise Untrusted(f"{path}: {total} bytes, {size} declared", code="segment_mismatch")
            try:
                while got < total:
                    count = response.readinto(buffer[got : min(got + CHUNK, total)])
                    if not count:
                        raise http.client.IncompleteRead(b"")
                    if form == IDENTITY:
                        sink(buffer[got : got + count])
                    got += count
                response.read()  # nothing is left; this gives the connection back
                return buffer[:got], form
            except _BROKEN as broken:
                self.close()
                if not left:
                    raise Unreachable(f"{self._url}: {_told(broken)}") from None
        raise AssertionError("unreachable: the last turn returns or raises")

    @staticmethod
    def _shape(response: http.client.HTTPResponse, path: str, got: int) -> tuple[str, int]:
        """(form, total length) of an answer; a range must begin where it was asked for."""
        form = response.headers.get("Interlock-Form", IDENTITY)
        if form not in FORMS:
            raise Untrusted(f"{path}: form {form!r} is not known", code="segment_mismatch")
        if response.status == 206:
            found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if not found or int(found.group(1)) != got:
                raise Untrusted(f"{path}: another range than was asked for", code="segment_mismatch")
            return form, int(found.group(3))
        if response.length is None:
            raise Untrusted(f"{path}: no length", code="segment_mismatch")
        return form, response.length
