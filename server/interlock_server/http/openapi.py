"""The OpenAPI 3.1 document, made from the table of routes and the models of bodies: it cannot be out of date."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from interlock_server.http.request import answer

DOCUMENT: web.AppKey[dict[str, Any]] = web.AppKey("openapi", dict)
JSON = "application/json"


class Described(Protocol):
    """What is read of a route."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def handler(self) -> Callable[[web.Request], Awaitable[web.StreamResponse]]: ...
    @property
    def role(self) -> str: ...
    @property
    def body(self) -> type[BaseModel] | None: ...
    @property
    def status(self) -> int: ...
    @property
    def query(self) -> tuple[str, ...]: ...


ERROR = {
    "type": "object",
    "required": ["kind", "code", "message", "details"],
    "properties": {
        "kind": {"type": "string", "description": "the class: what the caller does next"},
        "code": {"type": "string", "description": "stable, documented"},
        "message": {"type": "string", "description": "for people"},
        "details": {"type": "object"},
    },
}


def public_path(path: str) -> str:
    """A route's path as OpenAPI writes it: `{name:.+}` → `{name}`."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


def _operation(route: Described) -> dict[str, Any]:
    path = public_path(route.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ] + [{"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in route.query]
    name = f"{route.handler.__module__.rpartition('.')[2]}.{getattr(route.handler, '__name__', '')}"
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": inspect.getdoc(route.handler),
        "parameters": parameters,
        "responses": {
            str(route.status): {"description": "done"},
            "default": {
                "description": "refused, or failed",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
        "x-interlock-role": route.role or "none",
    }
    if route.role:
        operation["security"] = [{"bearer": []}, {"device": []}] if route.role == "device" else [{"bearer": []}]
    if route.body is not None:
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    elif route.method == "PUT":
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    return operation


def document(routes: Iterable[Described], version: str) -> dict[str, Any]:
    """The whole document."""
    known = list(routes)
    bodies = sorted({one.body for one in known if one.body is not None}, key=lambda body: body.__name__)
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in known:
        paths.setdefault(public_path(route.path), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Interlock server", "version": version, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "device": {"type": "mutualTLS", "description": "the device's client certificate"},
            },
        },
    }


async def get(request: web.Request) -> web.Response:
    """This document"""
    return answer(request.app[DOCUMENT])
