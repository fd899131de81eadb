"""Permits on this side: for whom, for how long, and by whom.

A permit lets a device install a release from a file. The server's director signs it when a release is exported; a key
that the root names for it (`x-interlock.sideload`) signs it anywhere else: on a laptop on the road, in a depot that has
no server. Such a key can neither make a release nor change one, and it commands no device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, BinaryIO

from securesystemslib.signer import Signer

from interlock_server.publisher import archives, export, metadata, payload
from interlock_shared import canonical, classes, trust
from interlock_shared.archive import Head, Reader
from interlock_shared.base import validate
from interlock_shared.documents import PERMIT_SCHEMA, Permit
from interlock_shared.errors import Invalid, Untrusted
from interlock_shared.limits import PERMIT_MAX_S
from interlock_shared.manifest import Manifest

UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def duration(text: str, option: str) -> timedelta:
    """`90d`, `12h`, `2w`, `30m`. Raises Invalid."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text.strip())
    seconds = int(found[1]) * UNITS_S[found[2]] if found else 0
    if not 0 < seconds <= PERMIT_MAX_S:
        most = PERMIT_MAX_S // 86_400
        raise Invalid(f"{option}: {text!r} is no time: 90d, 12h, 2w or 30m, at most {most}d", field=option)
    return timedelta(seconds=seconds)


@dataclass(frozen=True)
class Meant:
    """Which devices a permit is for, and how long it holds. Neither ids nor classes: any device of the fleet."""

    devices: tuple[str, ...]
    classes: tuple[Mapping[str, str], ...]
    valid_for: timedelta

    @classmethod
    def of(cls, devices: Iterable[str], selectors: Iterable[str], valid_for: str) -> Meant:
        """From the words of a command line. Raises Invalid."""
        parsed = tuple(classes.parse(one) for one in selectors)
        return cls(tuple(devices), parsed, duration(valid_for, "--valid-for"))

    def body(self) -> dict[str, Any]:
        """What is asked of the server."""
        return {
            "devices": list(self.devices) or None,
            "classes": [dict(one) for one in self.classes] or None,
            "valid_for_s": int(self.valid_for.total_seconds()),
        }

    def permit(self, manifest: Manifest, digest: str, now: datetime) -> Permit:
        """The document. Raises Invalid."""
        body = self.body()
        document = {
            "schema": PERMIT_SCHEMA,
            "min_agent": "0.1.0",
            "model": manifest.model,
            "version": manifest.version,
            "manifest_sha256": digest,
            "devices": body["devices"],
            "classes": body["classes"],
            "issued_at": _text(now),
            "expires_at": _text(now + self.valid_for),
        }
        return validate(Permit, document, "permit")


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def describe(permit: Permit) -> str:
    """For whom, in words."""
    named = [*(permit.devices or ()), *(f"class {classes.show(one)}" for one in permit.classes or ())]
    return ", ".join(named) or "any device of the fleet"


def check_named(signer: Signer, head: Head) -> None:
    """The newest root of the file lets this key sign permits: devices know no other. Raises Untrusted
    (`unsigned_bundle`, `foreign_sideload_key`)."""
    roots = [(int(name.split(".")[0]), data) for name, data in head.metadata.items() if name.endswith(".root.json")]
    if not roots:
        raise Untrusted("bundle: carries no signatures; export it from the server", code="unsigned_bundle")
    version, data = max(roots)
    if signer.public_key.keyid not in metadata.sideload_keys(data):
        raise Untrusted(
            f"root {version}, the newest in this file, does not let key {signer.public_key.keyid[:16]}… sign permits: "
            "name it (`interlock root propose --add`), and export the file again",
            code="foreign_sideload_key",
        )


def renew(
    stream: BinaryIO,
    out: BinaryIO,
    signer: Signer,
    meant: Meant,
    *,
    root: bytes | None,
    now: datetime,
    progress: payload.Progress = payload.silent,
) -> tuple[Permit, int]:
    """The same bundle with another permit, signed by a sideload key; the permit, and the bytes written. Everything of
    the bundle is checked on its way. Raises Untrusted (`foreign_sideload_key`, …), Invalid, OSError."""
    reader = Reader(stream)
    head = reader.head()
    permit = meant.permit(head.manifest, canonical.sha256(head.data), now)
    check_named(signer, head)
    sealed = trust.seal(permit, trust.PERMIT_TYPE, signer)
    made = Head(head.data, head.manifest, head.metadata, head.director, sealed)
    export.check_trust(made, root or head.metadata.get("1.root.json", b""), now)

    def passing() -> Any:
        for one in reader.segments(head.manifest):
            payload.content_of(one)
            progress(one.size)
            yield one

    return permit, archives.write(out, made, passing())
