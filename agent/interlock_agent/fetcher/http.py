"""The update server as a source: metadata, manifest, and segments by HTTP range.

http.client rather than a pool: a segment is received straight into the buffer that is hashed and written, without a
copy. A connection that breaks inside a segment goes on from the byte it had come to (RFC 9110, §14).
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from interlock_shared import topics
from interlock_shared.errors import InterlockError, Never, NotFound, Unreachable, Untrusted, from_wire
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
    """One connection to the update server; each thread has its own."""

    def __init__(self, url: str, username: str, password: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Never(f"not an address of a server: {url}", code="bad_server")
        self._host, self._port, self._tls = parts.hostname, parts.port, parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._url = url
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {credentials}"} if username else {}
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._tls:
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=TIMEOUT_S, context=context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _get(self, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        fresh = self._connection is None
        try:
            return self._send(path, headers)
        except _BROKEN as broken:
            self.close()
            if fresh:
                raise Unreachable(f"{self._url}: {_told(broken)}") from None
        try:  # a kept connection may have been closed by the server meanwhile
            return self._send(path, headers)
        except _BROKEN as broken:
            self.close()
            raise Unreachable(f"{self._url}: {_told(broken)}") from None

    def _send(self, path: str, headers: dict[str, str] | None) -> http.client.HTTPResponse:
        connection = self._connect()
        connection.request("GET", self._prefix + path, headers={**self._headers, **(headers or {})})
        return connection.getresponse()

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
        if error is not None and isinstance(error, Never | NotFound):
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
            raise Unreachable(f"{self._url}: {_told(broken)}") from None
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
