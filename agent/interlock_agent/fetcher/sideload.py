"""May a release from a file be believed, and may it be installed here? Numbered steps; the code has the numbers.

1. The file's roots are those of this device's fleet: the embedded root is among them.
2. python-tuf's walk from the embedded root on, in a store of its own: nothing in a file lowers or extends what is
trusted online. Timestamp and snapshot are checked for signature and version alone: what the file's permit says
of time stands in for them.
3. Root and targets are as new as what is trusted online; the rest moves with every release.
4. The manifest is a target that the model's release role has signed.
5. What is signed offline (root, targets, the release role) holds now.
6. Its signer has not taken it back, by what this device trusts online.
7. A permit that the director, or a sideload key of the root, has signed: for this release and device, not expired.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interlock_agent.fetcher import stores
from interlock_agent.fetcher.archive import Archive
from interlock_agent.fetcher.messages import Job
from interlock_agent.fetcher.revocations import recorded
from interlock_shared import canonical, topics, trust
from interlock_shared.errors import InterlockError, Never, Untrusted
from interlock_shared.manifest import Manifest

TOP_ROLES = ("root", "targets")


@contextlib.contextmanager
def _store() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = stores.make()
    try:
        yield folder
    finally:
        stores.remove(folder)


def believe(job: Job, root: bytes, source: Archive, digest: str) -> dict[str, Any]:
    """Steps 1 to 6; the public keys that may sign a permit. Raises Untrusted, Invalid."""
    from interlock_agent.fetcher.trust import walked  # 0.4 s and 25 MiB: only where metadata is due

    manifest = source.manifest
    refuse_foreign(root, source)  # 1
    with _store() as folder:
        below: dict[str, Any] = {role: job.floors[role] for role in TOP_ROLES if role in job.floors}
        try:
            # Judged at the beginning of time nothing has expired: 5 looks at what must hold now.
            chain, _ = walked(root, folder, source, 0.0, below)  # 2, 3
            director = chain.director(job.director_epoch)
        except Untrusted as older:
            if older.code != "below_floor":
                raise
            raise Untrusted(
                f"the file is older than what this device trusts: {older.message}", code=older.code
            ) from None
        chain.release(manifest.model, manifest.version, digest, {})  # 4
        chain.check_offline_roles(manifest.model, job.now)  # 5
        role_version = chain.version(topics.release_role(manifest.model)) or 0
        keys = sideload_keys((folder / "root.json").read_bytes())
    refuse_revoked(job, manifest, digest, role_version)  # 6
    return dict(director["keys"]) | keys


def permitted(job: Job, source: Archive, digest: str, keys: dict[str, Any]) -> None:
    """Step 7. Raises Untrusted, Forbidden, Invalid."""
    trust.open_permit(
        source.permit,
        trust.load_keys(keys),
        device=job.device,
        model=source.manifest.model,
        version=source.manifest.version,
        manifest_sha256=digest,
        now=job.now_text,
        facts=job.facts,
    )


def refuse_foreign(root: bytes, source: Archive) -> None:
    """Raises Untrusted (`unknown_root`) unless the embedded root is one of the file's roots."""
    own = _signed(root)
    version = int(own.get("version", 0))
    data = source.metadata(f"{version}.root.json", len(root) * 4 + 65_536)
    theirs = _signed(data) if data is not None else None
    if theirs == own:
        return
    newest = source.newest_root()
    if data is None and 0 < newest < version:
        message = f"the file is older than what this device trusts: its root is version {newest}, {version} is trusted"
        raise Untrusted(message, code="below_floor", role="root")
    found = canonical.sha256(data)[:16] + "…" if data is not None else "none"
    raise Untrusted(
        f"the file is of another fleet: this device trusts root {canonical.sha256(root)[:16]}…, the file's is {found}",
        code="unknown_root",
    )


def _signed(data: bytes) -> dict[str, Any]:
    """The signed part of a root, believed by nobody yet; other signatures over the same content are the same root."""
    try:
        found = json.loads(data)["signed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Untrusted("metadata: a root is not readable", code="bad_metadata")
    return found


def sideload_keys(root: bytes) -> dict[str, Any]:
    """The keys beside the director's that a trusted root lets sign permits. Raises Untrusted."""
    extension = _signed(root).get(topics.ROOT_EXTENSION)
    found = extension.get(topics.ROOT_SIDELOAD) if isinstance(extension, Mapping) else None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Untrusted("metadata: the root's sideload keys are not readable", code="bad_metadata")
    return found


def refuse_revoked(job: Job, manifest: Manifest, digest: str, role_version: int) -> None:
    """Raises Untrusted (`revoked`) where metadata that is trusted online, at least as new, lacks the release."""
    from interlock_agent.fetcher.trust import revoked  # as in `believe`

    online = Path(job.state_dir) / "trust" / "metadata"
    named = recorded(online, manifest.model, manifest.version, digest)
    if named or revoked(online, manifest.model, manifest.version, digest, role_version):
        raise Untrusted(f"{manifest.release} was revoked: its signer has taken it back", code="revoked")


class Counted:
    """Says at which segment reading a file broke off."""

    def __init__(self, total: int) -> None:
        self.number, self.total = 0, total

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Never) and 0 < self.number <= self.total and "segment" not in error.details:
            told = f"segment {self.number} of {self.total} is corrupted: {error.message}"
            raise _same(error, told, self.number) from None


def _same(error: InterlockError, message: str, number: int) -> InterlockError:
    return type(error)(message, code=error.code, **{**error.details, "segment": number})
