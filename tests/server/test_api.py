"""The API: hostile input, roles, enrolment, tokens, audit; and that its description is true."""

from __future__ import annotations

import io
from typing import Any

import pytest
from yarl import URL

from interlock_server.http.app import DEVICE, NOBODY, ROUTES, STATUS
from interlock_server.http.openapi import public_path
from interlock_shared import errors, topics
from tests.server.fleet_fixture import Fleet

DEEP = b"[" * 20_000
BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"null", 400),
    (b"[]", 400),
    (b"\xff", 400),
    (b'{"a":1,"a":1}', 400),
    (b'{"a":NaN}', 400),
    (DEEP, 400),
    (b'{"x":' + DEEP + b"}", 400),
    (b'{"unknown":"field"}', 400),
    (b'{"x":"\\ud800"}', 400),
    (b'{"n":' + b"9" * 5000 + b"}", 400),
]
WITH_BODY = [route for route in ROUTES if route.body is not None]


@pytest.mark.parametrize("path", sorted({route.path for route in WITH_BODY}))
async def test_malformed_bodies_are_refused_with_a_typed_error(fleet: Fleet, path: str) -> None:
    path = path.replace("{model}", "detector").replace("{version}", "1.0.0").replace("{id}", "x")
    optional = path == topics.DEVICE_TOKENS or path.endswith(("permit", "approve", "refuse"))
    for body, status in BODIES:
        got, document = await fleet.admin.ask("POST", path, data=body)
        assert got == status, (body[:40], document)
        assert set(document) == {"kind", "code", "message", "details"}
    if not optional:
        got, _ = await fleet.admin.ask("POST", path, data=b"{}")
        assert got == 400
    most = 64 if path == topics.TRUST else 24  # MiB: whole roots with all their roles are the largest
    got, document = await fleet.admin.ask("POST", path, data=io.BytesIO(b" " * (most * 1024 * 1024 + 1)))
    assert (got, document["code"]) == (413, "too_large")


REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/", None, 404, "no_route"),
    ("GET", "/v1/nothing", None, 404, "no_route"),
    ("PATCH", topics.RELEASES, None, 405, "method_not_allowed"),
    ("GET", "/v1/releases/detector/9.9.9", None, 404, "no_release"),
    ("GET", "/v1/releases/detector/9.9.9/manifest", None, 404, "no_release"),
    ("POST", "/v1/releases/detector/9.9.9/permit", {}, 404, "no_release"),
    ("GET", "/v1/devices/nobody", None, 404, "no_device"),
    ("GET", "/v1/devices/nobody/history", None, 404, "no_device"),
    ("GET", "/v1/devices/nobody/verdicts", None, 404, "no_device"),
    ("GET", "/v1/devices/nobody/verdicts/1.svg", None, 404, "no_device"),
    ("GET", "/v1/devices/nobody/verdicts/..%2F1.svg", None, 404, "no_verdict"),
    ("GET", "/v1/devices/x/history?limit=0", None, 400, "invalid"),
    ("GET", "/v1/events?limit=99999", None, 400, "invalid"),
    ("GET", "/v1/events?before=-1", None, 400, "invalid"),
    ("GET", "/v1/events?limit=%C2%B2", None, 400, "invalid"),
    ("GET", "/v1/devices?label=berlin", None, 400, "invalid"),
    ("GET", "/v1/rollouts/r-0", None, 404, "no_rollout"),
    ("POST", "/v1/rollouts/r-0/abort", None, 404, "no_rollout"),
    ("POST", topics.ROLLOUTS, {"model": "detector", "version": "9.9.9", "to": {"all": True}}, 404, "no_release"),
    ("POST", topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"all": True}}, 404, "no_device"),
    ("POST", topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {}}, 400, "invalid"),
    ("POST", topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"labels": {}}}, 400, "invalid"),
    (
        "POST",
        topics.ROLLOUTS,
        {"model": "detector", "version": "1.0.0", "to": {"all": True, "device": "x"}},
        400,
        "invalid",
    ),
    ("POST", topics.ROLLOUTS, {"model": "../etc", "version": "1.0.0", "to": {"all": True}}, 400, "invalid"),
    ("POST", topics.DEVICE_TOKENS, {"device": "+"}, 400, "invalid"),
    ("POST", topics.DEVICE_TOKENS, {"device": "a/b"}, 400, "invalid"),
    ("POST", topics.DEVICE_TOKENS, {"hours": 1e300}, 400, "invalid"),
    ("POST", topics.API_TOKENS, {"name": "x", "role": "root"}, 400, "invalid"),
    ("DELETE", topics.API_TOKENS, None, 400, "invalid"),
    ("DELETE", topics.API_TOKENS + "?id=none", None, 404, "not_found"),
    ("GET", "/v1/metadata/..%2F..%2Fserver.db", None, 404, "not_found"),
    ("GET", "/v1/metadata/%2Fetc%2Fpasswd", None, 404, "not_found"),
    ("GET", "/v1/metadata/1.root.json%00", None, 404, "not_found"),
    ("GET", "/v1/metadata/target/other.json", None, 404, "not_found"),
    ("POST", topics.BLOBS_MISSING, {"sha256": ["zz"]}, 400, "invalid"),
    ("GET", "/v1/blobs/zz", None, 400, "invalid"),
    ("GET", "/v1/blobs/" + "0" * 64, None, 404, "not_found"),
]


async def test_what_is_not_there_or_not_right(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    headers = {"Authorization": f"Bearer {fleet.token}"}
    for method, path, body, status, code in REFUSED:
        url = URL(fleet.admin.url + path, encoded=True)
        async with fleet.admin.session.request(method, url, json=body, headers=headers) as response:
            document = await response.json()
            assert (response.status, document["code"]) == (status, code), (path, document)


CREDENTIALS = (
    "",
    "Bearer",
    "Bearer ilk_wrong",
    "Basic !!",
    "Basic eDp5",
    "Basic eA==",
    "Digest x",
    "Bearer ilk_\u00e4",
)


async def test_every_route_asks_who_it_is(fleet: Fleet) -> None:
    for route in ROUTES:
        path = public_path(route.path).replace("{", "").replace("}", "")
        for given in CREDENTIALS:
            url = fleet.admin.url + path
            async with fleet.admin.session.request(route.method, url, headers={"Authorization": given}) as response:
                if route.role == NOBODY:
                    assert response.status != 401 or route.path == topics.ENROL
                else:
                    assert response.status == 401, (route.path, given)
                    assert "Bearer" in response.headers["WWW-Authenticate"]
                    assert (await response.json())["code"] == "unauthenticated"


async def test_every_route_asks_for_its_role(fleet: Fleet) -> None:
    roles = ["viewer", "operator", "publisher", "admin"]
    clients = {}
    for role in roles:
        made = await fleet.admin.post(topics.API_TOKENS, {"name": role, "role": role})
        clients[role] = fleet.client(made["token"])
    device = await fleet.enrol("edge-1")
    itself = {"ssl": device.tls()}
    for route in ROUTES:
        path = public_path(route.path).replace("{", "").replace("}", "")
        if route.role == NOBODY or path == topics.METRICS:
            continue
        needed = route.person if route.role == DEVICE else route.role
        for role in roles:
            status, document = await clients[role].ask(route.method, path)
            may = roles.index(role) >= roles.index(needed)
            assert (document.get("code") == "role_needed") is not may, (route.path, role, status)
        status, document = await fleet.client(None).ask(route.method, path, **itself)
        assert (document.get("code") == "role_needed") is (route.role != DEVICE)


async def test_a_revoked_token_is_unknown(fleet: Fleet) -> None:
    made = await fleet.admin.post(topics.API_TOKENS, {"name": "ci", "role": "viewer"})
    client = fleet.client(made["token"])
    await client.get(topics.DEVICES)
    listed = (await fleet.admin.get(topics.API_TOKENS))["tokens"]
    assert [one["name"] for one in listed] == ["first", "ci"]
    assert "sha256" not in listed[0]
    await fleet.admin.ask("DELETE", f"{topics.API_TOKENS}?id={made['id']}")
    status, _ = await client.ask("GET", topics.DEVICES)
    assert status == 401


async def test_the_description_is_true(fleet: Fleet) -> None:
    document = await fleet.client(None).get(topics.OPENAPI)
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, public_path(route.path)) for route in ROUTES}
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] for one in operations)
    for route in WITH_BODY:
        schema = document["paths"][public_path(route.path)][route.method.lower()]["requestBody"]["content"]
        name = schema["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert document["components"]["schemas"][name]["additionalProperties"] is False


def test_every_class_of_error_has_its_status() -> None:
    given = {kind: next(status for one, status in STATUS if issubclass(kind, one)) for kind in errors.KINDS.values()}
    assert given[errors.Invalid] == 400
    assert given[errors.Untrusted] == 422
    assert given[errors.NoSpace] == 507
    assert given[errors.Unreachable] == 502
    assert all(400 <= status < 600 for status in given.values())


async def test_every_change_is_in_the_audit_log(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    await fleet.enrol("edge-1")
    body = {"model": "detector", "version": "1.0.0", "to": {"all": True}}
    started = await fleet.admin.post(topics.ROLLOUTS, body)
    await fleet.admin.post(f"/v1/rollouts/{started['id']}/abort")
    await fleet.admin.post("/v1/releases/detector/1.0.0/permit", {"devices": ["edge-1"]})
    lines = (await fleet.admin.get(topics.AUDIT))["audit"]
    assert [one["action"] for one in reversed(lines)] == [
        "token.create",
        "trust.update",
        "blob.upload",
        "release.publish",
        "device.invite",
        "device.enrol",
        "rollout.start",
        "rollout.abort",
        "permit.issue",
    ]
    assert {one["address"] for one in lines} == {"127.0.0.1", "local"}


async def test_figures_for_prometheus(fleet: Fleet) -> None:
    await fleet.enrol("edge-1")
    headers = {"Authorization": f"Bearer {fleet.token}"}
    async with fleet.admin.session.get(fleet.admin.url + topics.METRICS, headers=headers) as response:
        assert 'interlock_devices{online="false"} 1.0' in await response.text()
