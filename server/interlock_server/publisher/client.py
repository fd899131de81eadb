"""The API as the release engineer's machine uses it: one class, errors of our tree, nothing held that can be streamed.

What may be asked again without harm is asked again when the network fails: reading, and segments, which are addressed
by their content.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import aiohttp

from interlock_shared import __version__, errors, topics
from interlock_shared.errors import Forbidden, InterlockError, Invalid, NotFound, Unreachable, Untrusted
from interlock_shared.limits import BACKOFF_FIRST_S, METADATA_MAX_BYTES, MIB, SEGMENT_MAX_BYTES
from interlock_shared.segments import Transport

ANSWER_MAX_BYTES = 64 * MIB  # the longest list a server gives
TRIES = 4
CONNECT_S = 10.0
SILENCE_S = 60.0  # without a byte: the connection is dead

T = TypeVar("T")


def _context(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=ca)
    except ssl.SSLError:
        raise Invalid("ca: not a certificate (PEM)", field="--ca", code="bad_ca") from None


async def authority(server: str, sha256: str) -> str:
    """The certificate (PEM) of the server's TLS authority, asked of the server itself: it is believed by its SHA-256
    alone, so nothing is sent but the question. Raises Untrusted (`ca_mismatch`), Unreachable.
    """
    async with Api(server, verify=False) as api:
        told = str((await api.get(topics.STATUS)).get("tls_ca"))
    try:
        der = ssl.PEM_cert_to_DER_cert(told[: told.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)])
    except ValueError:
        raise Untrusted(f"{server}: it names no TLS authority", code="ca_mismatch") from None
    found = hashlib.sha256(der).hexdigest()
    if found != sha256.lower().replace(":", ""):
        raise Untrusted(f"{server}: its authority is {found}, {sha256} was expected", code="ca_mismatch")
    return ssl.DER_cert_to_PEM_cert(der)  # that one alone, whatever else was sent behind it


def path(route: str, **parts: str) -> str:
    """A route of `topics` with its parts filled in; they are quoted by yarl when the URL is made."""
    for name, value in parts.items():
        if not value or "/" in value or value in {".", ".."}:
            raise Invalid(f"{name}: {value!r} is no name", field=name)
        route = route.replace("{" + name + "}", value)
    return route


def _cause(error: OSError) -> str:
    """The system's word for it; what asyncio makes of a refused connection names a tuple."""
    if error.errno and error.errno > 0:  # getaddrinfo's own numbers are below zero
        return os.strerror(error.errno)
    return error.strerror or str(error)


class Api:
    """A server, a token, and the authority (PEM) of the server's certificate; without one the system's count.

    `verify` false: whoever answers is asked. An async context manager. Every method raises InterlockError.
    """

    def __init__(
        self,
        server: str,
        token: str | None = None,
        ca: str | None = None,
        *,
        verify: bool = True,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        if not server.startswith(("http://", "https://")):
            raise Invalid(f"server: {server!r} is no http:// or https:// address", field="server")
        self.server, self._token, self._pause = server.rstrip("/"), token, pause
        self._ssl: ssl.SSLContext | bool = _context(ca) if ca else verify
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Api:
        headers = {"User-Agent": f"interlock/{__version__}"}
        if self._token:
            if not self._token.isascii() or not self._token.isprintable():
                raise Invalid("token: it holds characters that no token has", field="token")
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        connector = aiohttp.TCPConnector(ssl=self._ssl)
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, auto_decompress=False, connector=connector
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def _again(self, once: Callable[[], Awaitable[T]]) -> T:
        """Try what is safe to repeat a few times, with full jitter between."""
        for number in range(TRIES - 1):
            try:
                return await once()
            except errors.Later as bad:
                if isinstance(bad, errors.NoSpace):
                    raise
                await self._pause(random.uniform(0, BACKOFF_FIRST_S * 2**number))
        return await once()

    async def _ask(self, method: str, route: str, limit: int, **more: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        if self._session is None:
            raise RuntimeError("the client is not open")
        try:
            async with self._session.request(method, self.server + route, allow_redirects=False, **more) as answer:
                data = await _bounded(answer, limit)
                if answer.status >= 300:
                    raise _error(answer, data)
                return answer, data
        except aiohttp.InvalidURL as bad:
            raise Invalid(f"server: {bad} is no address", field="server") from None
        except TimeoutError:
            raise Unreachable(f"{self.server}: no answer in time") from None
        except aiohttp.ClientConnectorCertificateError as bad:
            why = getattr(bad.certificate_error, "verify_message", "") or str(bad.certificate_error)
            raise Untrusted(
                f"{self.server}: its certificate does not hold ({why}); once: interlock login --server {self.server} "
                "--ca-sha256 …, as the server's first start prints it",
                code="unknown_server",
            ) from None
        except aiohttp.ClientConnectorError as bad:
            raise Unreachable(f"no server answers at {self.server}: {_cause(bad.os_error)}") from None
        except (aiohttp.ClientError, OSError) as bad:
            raise Unreachable(f"{self.server}: {str(bad) or type(bad).__name__}") from None

    async def get(self, route: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON document."""
        _, data = await self._again(lambda: self._ask("GET", route, ANSWER_MAX_BYTES, params=dict(query or {})))
        return _document(data)

    async def get_bytes(self, route: str, limit: int) -> bytes:
        """A document as it is."""
        _, data = await self._again(lambda: self._ask("GET", route, limit))
        return data

    async def metadata(self, name: str) -> bytes | None:
        """One TUF metadata file; None when there is none."""
        try:
            return await self.get_bytes(topics.METADATA.replace("{name}", name), METADATA_MAX_BYTES)
        except NotFound:
            return None

    async def post(self, route: str, document: Mapping[str, Any], *, safe: bool = False) -> dict[str, Any]:
        """Send a document, get one. `safe`: asking twice changes nothing."""

        async def once() -> bytes:
            return (await self._ask("POST", route, ANSWER_MAX_BYTES, json=dict(document)))[1]

        data = await (self._again(once) if safe else once())
        return _document(data)

    async def delete(self, route: str) -> dict[str, Any]:
        """Take something back; asking twice changes nothing."""
        return _document((await self._ask("DELETE", route, ANSWER_MAX_BYTES))[1])

    async def put_segment(self, one: Transport) -> None:
        """Upload a segment in its transport form."""
        headers = {
            "Interlock-Form": one.form,
            "Interlock-Size": str(one.size),
            "Content-Type": "application/octet-stream",
        }
        route = path(topics.BLOB, sha256=one.sha256)

        async def once() -> None:
            await self._ask("PUT", route, MIB, data=io.BytesIO(one.data), headers=headers)

        await self._again(once)

    async def get_segment(self, sha256: str, size: int) -> Transport:
        """Download a segment in its transport form; its content is not checked here."""
        answer, data = await self._again(lambda: self._ask("GET", path(topics.BLOB, sha256=sha256), SEGMENT_MAX_BYTES))
        return Transport(sha256, size, answer.headers.get("Interlock-Form", "identity"), data)


async def _bounded(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, length = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        length += len(part)
        if length > limit:
            raise Invalid(f"server: an answer of more than {limit} bytes", code="bad_answer")
    return b"".join(parts)


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise Invalid("server: its answer is not JSON; is this an Interlock server?", code="bad_answer") from None
    if not isinstance(document, dict):
        raise Invalid("server: its answer is not what was expected", code="bad_answer")
    return document


def _error(answer: aiohttp.ClientResponse, data: bytes) -> InterlockError:
    try:
        document = json.loads(data)
        if isinstance(document, dict) and "code" in document:
            error = errors.from_wire(document)
            if answer.status == 401:
                return Forbidden("the server does not know this token; `interlock login`", code="unauthenticated")
            return error
    except (ValueError, TypeError, RecursionError):
        pass
    where = f"{answer.method} {answer.url.path}: {answer.status} {answer.reason}"
    if answer.status == 404:
        return NotFound(f"server: {where}", code="not_found")
    if answer.status >= 500 or answer.status in {408, 429}:
        return Unreachable(f"server: {where}")
    return Invalid(f"server: {where}", code="bad_answer")
