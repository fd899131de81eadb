"""What every handler needs: the services, the body as a model, queries as numbers, who asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from interlock_server.catalogue import Catalogue
from interlock_server.core.access import Actor
from interlock_server.devices import Devices
from interlock_server.grants import Grants
from interlock_server.http.connections import Connections
from interlock_server.identities import Identities
from interlock_server.invitations import Invitations
from interlock_server.ports import Changed
from interlock_server.publishing import Publishing
from interlock_server.rollouts import Rollouts
from interlock_server.sideloads import Sideloads
from interlock_server.tokens import Tokens
from interlock_server.withdrawals import Withdrawals
from interlock_shared import canonical
from interlock_shared.base import describe
from interlock_shared.errors import Invalid

M = TypeVar("M", bound=BaseModel)
LIMIT_MAX = 1000  # rows in one answer
ACTOR: web.RequestKey[Actor] = web.RequestKey("actor", Actor)


@dataclass
class Own:
    """What is known of this server only once it listens: the URL of its TLS listener."""

    url: str = ""


@dataclass(frozen=True)
class Services:
    """Everything behind the API. `figures`: device messages by what became of them."""

    catalogue: Catalogue
    publishing: Publishing
    withdrawals: Withdrawals
    devices: Devices
    identities: Identities
    invitations: Invitations
    grants: Grants
    connections: Connections
    rollouts: Rollouts
    sideloads: Sideloads
    tokens: Tokens
    changed: Changed
    figures: Callable[[], dict[str, int]]
    version: str
    tls_ca: str  # PEM of what the server's own certificate is signed by
    own: Own
    public_url: str | None
    broker_url: str | None  # of an external broker
    broker_port: int  # of the embedded one


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)


def services(request: web.Request) -> Services:
    """Everything behind the API."""
    return request.app[SERVICES]


def actor(request: web.Request) -> Actor:
    """Who asks; the middleware has seen to it that somebody does."""
    return request[ACTOR]


async def body(request: web.Request, kind: type[M], limit: int) -> M:
    """The request's JSON as a model: size and depth capped. Raises Invalid."""
    data = bytearray()  # grows in place: a large upload is not copied once a part
    async for part in request.content.iter_chunked(64 * 1024):
        data += part
        if len(data) > limit:
            raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=len(data))
    document = canonical.decode(bytes(data), limit=limit, what="body")
    try:
        return kind.model_validate_json(canonical.encode(document))
    except ValidationError as bad:
        raise describe(bad, "body") from None
    except UnicodeEncodeError:
        raise Invalid("body: not Unicode", field="body") from None


def number(request: web.Request, name: str, default: int | None, low: int, high: int) -> int | None:
    """A number from the query. Raises Invalid."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16 or not low <= int(text) <= high:
        raise Invalid(f"{name}: a number from {low} to {high} is expected", field=name)
    return int(text)


def limit(request: web.Request) -> int:
    """`?limit`, 100 by default."""
    return number(request, "limit", 100, 1, LIMIT_MAX) or 100


def before(request: web.Request) -> int | None:
    """`?before`: the id that the page before ended with."""
    return number(request, "before", None, 1, 2**53)


def labels(request: web.Request) -> dict[str, str]:
    """`?label=site=berlin`, any number of them. Raises Invalid."""
    found = {}
    for text in request.query.getall("label", []):
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise Invalid(f"label: {text[:80]!r} is not NAME=VALUE", field="label")
        found[name] = value
    return found


def server_url(request: web.Request) -> str:
    """This server's URL for devices, as whoever asks reaches it; never the plain listener's."""
    known = services(request)
    return known.public_url or (f"https://{request.host}" if request.secure else known.own.url)


def broker_url(request: web.Request) -> str:
    """The broker's URL for devices: an external one's own, else the host by which the client reached this server."""
    known = services(request)
    if known.broker_url is not None:
        return known.broker_url
    host = server_url(request).partition("://")[2].partition("/")[0]
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return f"mqtts://{name}:{known.broker_port}"


def answer(document: Any, status: int = 200) -> web.Response:
    """JSON out."""
    return web.json_response(body=canonical.encode(document), status=status)
