"""What is done with a proposal: signed here and sent where this side's keys are enough, else written for the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from interlock_server.publisher import proposal as proposals
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import ROOT_FILE, KeyFolder
from interlock_server.publisher.proposal import Proposal
from interlock_shared import canonical, topics
from interlock_shared.errors import NotFound, Untrusted


async def publish(api: Api, folder: KeyFolder, proposal: Proposal) -> dict[str, Any]:
    """Send what is signed by enough keys; the server's trust. The folder trusts the newest root from then on.

    Raises Untrusted (`signatures_missing`), and what the server refuses.
    """
    upload = proposal.upload()
    answer = await api.post(topics.TRUST, upload, safe=True)
    await asyncio.to_thread(folder.write, ROOT_FILE, canonical.encode(upload["root"]))
    return answer


async def here(api: Api, folder: KeyFolder, proposal: Proposal) -> dict[str, Any]:
    """Sign with what is here and send. Raises Untrusted (`signatures_missing`), and what a key or the server raises."""
    await asyncio.to_thread(proposals.sign, proposal, folder)
    try:
        return await publish(api, folder, proposal)
    except Untrusted as bad:
        if bad.code != "signatures_missing":
            raise
        words = f"{bad.message}. Give -o FILE, and let the others `interlock root sign` it"
        raise Untrusted(words, code=bad.code) from None


def check_file(folder: KeyFolder, proposal: Proposal) -> bool:
    """Whether the file follows from the root that this side trusts; False where it trusts none yet.

    Raises Untrusted (`foreign_root`).
    """
    try:
        trusted = folder.root()
    except NotFound:
        return False
    if not proposal.former.roots:
        raise Untrusted("the file begins another fleet, and you trust the root of one already", code="foreign_root")
    proposals.check_state(proposal.former, trusted)
    return True


def pinned(found: list[bytes], digest: str, path: Path) -> bytes:
    """The root of that digest among a server's. Raises Untrusted (`foreign_root`)."""
    for data in found:
        if canonical.sha256(data) == digest.lower():
            return data
    raise Untrusted(
        f"none of the server's {len(found)} roots has this digest; {path} was not written", code="foreign_root"
    )
