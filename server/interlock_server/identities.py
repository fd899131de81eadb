"""Who a device is: enrolment, approval, renewal, revocation; and whether a certificate is a device's.

Rules of the file:
- A device is known by a certificate of the device authority, by its serial, which the table `certificates` must know.
- The same key with the same token is answered the same again: an answer may be lost, a device may be asked to wait.
- Revocation is durable before anybody is cut off, and every cutter is called each time: a broker may have been away.
- Keys of former certificates stay: what a device signed before a renewal is still its word. A revoked one's is not.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from interlock_server import clones
from interlock_server.auditing import record
from interlock_server.core import clones as clones_core
from interlock_server.core.access import Actor, digest
from interlock_server.core.moments import parse, stamp
from interlock_server.invitations import open_invitation
from interlock_server.ports import Authority, Clock, Row, Rows, Store
from interlock_server.rollouts import derive
from interlock_shared.errors import Busy, Conflict, Forbidden, NotFound

log = logging.getLogger(__name__)

Cut = Callable[[str], Awaitable[None]]

WAITING, DONE, REFUSED = "waiting", "enrolled", "refused"
REVOKED, REPLACED = "revoked", "replaced"  # why a certificate is no longer taken
RENEWALS_A_DAY = 10  # a device that loses each answer tries again; one that never stops fills the table


class Identities:
    """`lifetime`: of a device's certificate. `cutters`: called with a device's id when it is to be cut off at once."""

    def __init__(self, store: Store, authority: Authority, clock: Clock, lifetime: timedelta) -> None:
        self._store, self._authority, self._clock, self._lifetime = store, authority, clock, lifetime
        self.cutters: list[Cut] = []

    # --- joining ---------------------------------------------------------------------------------------------------

    async def enrol(self, token: str, csr: str, name: str | None, agent: str, address: str) -> Row:
        """Use a token: `{"status", "device", "certificate", "labels", "keyid"}`; `status` is `enrolled`, or `waiting`
        and there is no certificate yet: the device asks again.

        Raises Forbidden (`unauthenticated`, `token_used`, `token_expired`, `token_revoked`, `enrolment_refused`),
        Invalid (`bad_csr`), Conflict (`device_exists`).
        """
        public = await asyncio.to_thread(self._authority.public_of, csr.encode())
        now, sha256 = self._clock(), digest(token)
        async with self._store.writing() as rows:
            known = await rows.find("enrolments", token=sha256, keyid=public["keyid"])
            invitation = await open_invitation(rows, sha256, stamp(now), again=known is not None)
            if known is None:
                device = invitation["device"] or name or f"device-{secrets.token_hex(4)}"
                known = await self._asked(rows, invitation, device, csr, public, agent, address, now)
            replaced = False
            if known["state"] == DONE and known["certificate"] is None:
                known, replaced = await self._admit(rows, known, invitation, now)
            if known["state"] == REFUSED:
                raise Forbidden("a person has refused this device", code="enrolment_refused")
            await self._still_its_own(rows, known)
        if replaced:
            await self._cut(known["device"])  # whoever had this name before
        return {
            "status": known["state"],
            "device": known["device"],
            "certificate": known["certificate"],
            "labels": known.get("labels", invitation["labels"]),
            "keyid": known["keyid"],
        }

    async def _asked(
        self,
        rows: Rows,
        invitation: Row,
        device: str,
        csr: str,
        public: Mapping[str, Any],
        agent: str,
        address: str,
        now: datetime,
    ) -> Row:
        """A key that this token has not seen: it takes one of the token's uses."""
        fleet, at = invitation["uses"] > 1, stamp(now)
        if not fleet and invitation["device"] is None and await rows.find("devices", id=device):
            raise Conflict(
                f"{device} is enrolled; a token made for exactly this device id replaces its identity",
                code="device_exists",
            )
        await rows.change("device_tokens", {"sha256": invitation["sha256"]}, used=invitation["used"] + 1)
        asked = {
            "token": invitation["sha256"],
            "keyid": public["keyid"],
            "device": device,
            "key": public["key"],
            "csr": csr,
            "agent": agent,
            "address": address,
            "asked_at": at,
            "state": WAITING if fleet else DONE,
            "certificate": None,
        }
        await rows.insert("enrolments", **asked)
        actor = Actor(f"token of {invitation['created_by']}", "device", address)
        await record(rows, at, actor, "device.ask" if fleet else "device.enrol", device, keyid=public["keyid"])
        return asked

    async def _admit(self, rows: Rows, asked: Row, invitation: Row, now: datetime) -> tuple[Row, bool]:
        """Issue the certificate; the device's row is this identity's from now on. And whether there was one before."""
        device, at = asked["device"], stamp(now)
        former = {"device": device, "revoked_at": None}
        replaced = await rows.change("certificates", former, revoked_at=at, reason=REPLACED) > 0
        pem = await self._issue(rows, device, asked["csr"], {"keyid": asked["keyid"], "key": asked["key"]}, now)
        before = await rows.find("devices", id=device)
        labels = invitation["labels"] or (before["labels"] if before else {})  # a new key is no new place
        identity = {
            "labels": labels,
            "key": {"keyid": asked["keyid"], "key": asked["key"]},
            "enrolled_at": at,
            "agent": asked["agent"],
            "revoked_at": None,
            "clone": None,
            "instances": [],
        }
        fresh = {"online": False, "last_seen": None, "reported": None, "epoch": 0, "counter": 0, "refused": 0}
        unsent = {"desired": None, "desired_units": None, "desired_issued_at": None}
        if not await rows.insert_new("devices", id=device, **identity, **fresh, **unsent):
            # The counter stays: a device with new keys may still remember how far the old one came.
            await rows.change("devices", {"id": device}, **identity)
        where = {"token": asked["token"], "keyid": asked["keyid"]}
        await rows.change("enrolments", where, certificate=pem)
        await derive(rows, [device], at)
        return {**asked, "certificate": pem, "labels": labels}, replaced

    async def _issue(self, rows: Rows, device: str, csr: str, public: Mapping[str, Any], now: datetime) -> str:
        issued = await asyncio.to_thread(self._authority.issue, csr.encode(), device, now, self._lifetime)
        await rows.insert(
            "certificates",
            serial=issued.serial,
            device=device,
            keyid=public["keyid"],
            key=public["key"],
            issued_at=stamp(now),
            expires_at=stamp(issued.expires_at),
            first_used_at=None,
            revoked_at=None,
            reason="",
        )
        return issued.pem.decode()

    @staticmethod
    async def _still_its_own(rows: Rows, known: Row) -> None:
        """What was issued by this very request may be gone since: replaced, or revoked. Raises Forbidden."""
        if known["state"] != DONE:
            return
        of_key = await rows.list("certificates", device=known["device"], keyid=known["keyid"])
        if not any(one["revoked_at"] is None for one in of_key):
            raise Forbidden("the token was used for an identity that is no longer valid", code="token_used")

    # --- approval --------------------------------------------------------------------------------------------------

    async def waiting(self) -> list[Row]:
        """Devices that wait for a person, oldest first."""
        async with self._store.reading() as rows:
            found = await rows.list("enrolments", order="asked_at", state=WAITING)
            exists = {one["id"] for one in await rows.list("devices", id=("in", [one["device"] for one in found]))}
        shown = ("device", "keyid", "agent", "address", "asked_at")
        return [{**{name: one[name] for name in shown}, "replaces": one["device"] in exists} for one in found]

    async def decide(self, actor: Actor, device: str, keyid: str | None, *, approved: bool) -> Row:
        """Let a waiting device in, or not. `keyid` (or its beginning) says which, where several ask for the same id.

        Raises NotFound (`not_waiting`), Conflict (`ambiguous_key`).
        """
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            found = await rows.list("enrolments", device=device, state=WAITING)
            found = [one for one in found if one["keyid"].startswith(keyid or "")]
            if not found:
                raise NotFound(f"no device waits as {device}", code="not_waiting")
            if len(found) > 1 and (approved or keyid):
                keys = ", ".join(one["keyid"][:12] for one in found)
                raise Conflict(f"{len(found)} devices wait as {device}: say which key: {keys}", code="ambiguous_key")
            for one in found:
                where = {"token": one["token"], "keyid": one["keyid"]}
                await rows.change("enrolments", where, state=DONE if approved else REFUSED)
                action = "device.approve" if approved else "device.refuse"
                await record(rows, at, actor, action, device, keyid=one["keyid"])
        return {"device": device, "keyid": found[0]["keyid"], "status": "approved" if approved else REFUSED}

    # --- afterwards ------------------------------------------------------------------------------------------------

    async def renew(self, device: str, csr: str, address: str) -> Row:
        """A certificate for a fresh key; the one before stays valid. `{"certificate", "expires_at"}`. Raises Invalid
        (`bad_csr`), Forbidden (`device_revoked`), Busy."""
        public = await asyncio.to_thread(self._authority.public_of, csr.encode())
        now = self._clock()
        async with self._store.writing() as rows:
            row = await rows.find("devices", id=device)
            if row is None or row["revoked_at"] is not None:  # since the request was let in
                raise Forbidden(f"{device} was revoked; enrol again", code="device_revoked")
            recent = stamp(now - timedelta(days=1))
            if len(await rows.list("certificates", device=device, issued_at=(">", recent))) > RENEWALS_A_DAY:
                raise Busy(f"{device} has renewed {RENEWALS_A_DAY} times within a day", code="too_many_renewals")
            pem = await self._issue(rows, device, csr, public, now)
            await record(
                rows, stamp(now), Actor(device, "device", address), "device.renew", device, keyid=public["keyid"]
            )
        return {"certificate": pem, "expires_at": stamp(now + self._lifetime)}

    async def revoke(self, actor: Actor, device: str, reason: str) -> Row:
        """Nothing of this device is believed any more, from now on. Raises NotFound (`no_device`).

        Asked again it cuts off again. A new enrolment with a token for exactly this id takes the device back.
        """
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            row = await rows.find("devices", id=device)
            if row is None:
                raise NotFound(f"there is no device {device}", code="no_device")
            if row["revoked_at"] is None:
                await rows.change("devices", {"id": device}, revoked_at=at, online=False)
                await record(rows, at, actor, "device.revoke", device, reason=reason)
            await rows.change("certificates", {"device": device, "revoked_at": None}, revoked_at=at)
            await rows.change("certificates", {"device": device}, reason=REVOKED)
            # An approval that was not used yet was for the device as it was known then: a person looks again.
            approved = {"device": device, "state": DONE, "certificate": None}
            await rows.change("enrolments", approved, state=WAITING)
            await derive(rows, [device], at)  # rollouts do not wait for it
        await self._cut(device)
        return {"device": device, "revoked_at": row["revoked_at"] or at}

    async def _cut(self, device: str) -> None:
        for cut in self.cutters:
            try:
                await cut(device)
            except Exception:
                log.exception("%s may still be connected somewhere", device)

    async def authenticate(self, device: str, serial: str) -> None:
        """Whether this is one of the device's certificates, and holds.

        Raises Forbidden (`unauthenticated`, `device_revoked`, `certificate_expired`).
        """
        async with self._store.reading() as rows:
            held = await rows.list("certificates", device=device)
        row = next((one for one in held if one["serial"] == serial), None)
        if row is None:
            raise Forbidden("this server has not issued this certificate", code="unauthenticated")
        if row["revoked_at"] is not None:
            words = "was revoked" if row["reason"] == REVOKED else "was replaced by a new enrolment"
            raise Forbidden(f"the certificate of {device} {words}; enrol again", code="device_revoked")
        if row["expires_at"] <= stamp(self._clock()):
            raise Forbidden(
                f"the certificate of {device} expired at {row['expires_at'][:19]}Z", code="certificate_expired"
            )
        if row["first_used_at"] is None:
            await self._first_use(row)
        long_ago = stamp(self._clock() - timedelta(hours=clones_core.SUPERSEDED_HOURS))
        following = [one["first_used_at"] for one in held if one["issued_at"] > row["issued_at"]]
        if any(at is not None and at < long_ago for at in following):
            await self._used_twice(device)

    async def _used_twice(self, device: str) -> None:
        async with self._store.writing() as rows:
            row = await rows.find("devices", id=device)
            if row is not None:
                await clones.mark(rows, row, clones_core.FORMER_CERTIFICATE, stamp(self._clock()))

    async def _first_use(self, row: Row) -> None:
        """From now on verdicts come with this key; those of the former ones still hold."""
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            await rows.change("certificates", {"serial": row["serial"]}, first_used_at=at)
            await rows.change("devices", {"id": row["device"]}, key={"keyid": row["keyid"], "key": row["key"]})

    async def is_device(self, device: str, serial: str) -> bool:
        """`authenticate`, for those who only want to know."""
        try:
            await self.authenticate(device, serial)
        except Forbidden:
            return False
        return True

    async def revoked(self) -> dict[str, datetime]:
        """Serial → since when, of the certificates that are no longer taken and have not expired: for a CRL."""
        now = stamp(self._clock())
        async with self._store.reading() as rows:
            found = await rows.list("certificates", expires_at=(">", now))
        return {one["serial"]: parse(one["revoked_at"]) for one in found if one["revoked_at"] is not None}


async def keys_of(rows: Rows, device: str) -> dict[str, Any]:
    """Every key by which this device may have signed: `{keyid: key}`; none of a revoked identity."""
    found = await rows.list("certificates", device=device)
    return {one["keyid"]: one["key"] for one in found if one["reason"] != REVOKED}
