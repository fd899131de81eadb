"""Joins the parts: reads a job, carries it out, says how it went."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from interlock_agent.fetcher import credentials, messages, stores
from interlock_agent.fetcher.archive import Archive
from interlock_agent.fetcher.assemble import Assembly
from interlock_agent.fetcher.http import Server
from interlock_agent.fetcher.messages import Job
from interlock_agent.fetcher.revocations import look
from interlock_agent.fetcher.sideload import Counted, believe, permitted
from interlock_shared import canonical, topics
from interlock_shared import manifest as manifests
from interlock_shared.errors import InterlockError, Later, Never, NoSpace, Unreachable, Untrusted, to_wire
from interlock_shared.limits import DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES
from interlock_shared.manifest import Manifest, SegmentRef
from interlock_shared.seals import encode, seal


def tell(**line: Any) -> None:
    """One line to the agent."""
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


class Input:
    """Standard input, read by a thread of its own: its end is the end of this process."""

    def __init__(self) -> None:
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while piece := os.read(0, 65536):  # not sys.stdin: its lock would be held when this process ends
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._lines.put(line)
        stores.leave_nothing()
        os._exit(3)  # the agent is gone, or no longer wants this

    def line(self) -> bytes:
        """The next line."""
        return self._lines.get()


def wait_for_go(said: Input, head: dict[str, Any]) -> None:
    """Tell what the manifest says; go on only when the agent wants it."""
    tell(head=head)
    if said.line().strip().decode() != messages.GO:
        sys.exit(3)


def head_of(manifest: Manifest, digest: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What the agent decides by."""
    return {
        "model": manifest.model,
        "version": manifest.version,
        "manifest_sha256": digest,
        "payload_sha256": manifest.payload_sha256(),
        "size": manifest.payload_size,
        "manifest": manifest.model_dump(mode="json", by_alias=True),
        "trust": facts,
    }


def connection(job: Job, floor: float | None = None) -> Server:
    """To the update server, known by the device's certificate. `floor`: another time than the floor, to judge its
    certificate by."""
    return Server(job.server, credentials.of_device(Path(job.state_dir)), job.clock_floor if floor is None else floor)


def embedded_root(job: Job) -> bytes:
    """The root that came with the enrolment."""
    try:
        return (Path(job.state_dir) / "trust" / "root.json").read_bytes()
    except OSError:
        raise Untrusted("no root is embedded: the device was not enrolled", code="not_enrolled") from None


def refresh(job: Job, server: Server) -> tuple[Any, dict[str, Any]]:
    """Trusted metadata from the server, and the facts that the agent journals.

    What has expired is refused, and asked for again: newer metadata may come, or the right time."""
    from interlock_agent.fetcher.trust import walked  # 0.4 s and 25 MiB: only where metadata is due

    folder = Path(job.state_dir) / "trust" / "metadata"
    try:
        chain, floors = walked(embedded_root(job), folder, server, job.now, job.floors, job.clock)
    except Untrusted as refused:
        raise later_if_expired(refused) from None
    credentials.keep_authority(Path(job.state_dir), (folder / "root.json").read_bytes())
    director = chain.director(job.director_epoch)
    revoked, floors = look(chain, job.installed, floors)
    facts = {"floors": floors, "director": director, "signed_until": chain.until()}
    return chain, {**facts, "revoked": revoked}


def later_if_expired(refused: Untrusted) -> InterlockError:
    """What is refused by the time alone is not refused for ever."""
    return Later(refused.message, code=refused.code) if refused.code == "metadata_expired" else refused


def online(job: Job, said: Input) -> None:
    """A release from the server."""
    server = connection(job)
    chain, facts = refresh(job, server)
    try:
        facts["floors"] = chain.release(job.unit, job.version, job.manifest_sha256, facts["floors"])
    except Untrusted as refused:
        raise later_if_expired(refused) from None
    path = topics.MANIFEST.replace("{model}", job.unit).replace("{version}", job.version)
    raw = server.get(path, MANIFEST_MAX_BYTES)
    if raw is None or canonical.sha256(raw) != job.manifest_sha256:
        raise Untrusted(f"{job.unit} {job.version}: the manifest is not the signed one", code="manifest_mismatch")
    manifest = manifests.parse(raw)
    wait_for_go(said, head_of(manifest, job.manifest_sha256, facts))
    assembly = assembly_of(job, manifest, raw, job.manifest_sha256)
    download(job, assembly, assembly.missing())
    finish(assembly, manifest, job.manifest_sha256)


def download(job: Job, assembly: Assembly, wanted: list[SegmentRef]) -> None:
    """All segments, over a few connections: while one hashes, another receives."""
    waiting = iter(wanted)
    lock = threading.Lock()
    trouble: list[BaseException] = []

    def work() -> None:
        server = connection(job)
        try:
            while not trouble:
                with lock:
                    segment = next(waiting, None)
                if segment is None:
                    return
                digest = hashlib.sha256()
                content, form = server.segment(segment.sha256, segment.size, digest.update)
                assembly.add(segment, content, form, digest.hexdigest() if form == "identity" else None)
        except BaseException as error:  # noqa: BLE001  # told by the main thread, whatever it is
            trouble.append(error)
        finally:
            server.close()

    threads = [threading.Thread(target=work) for _ in range(max(1, min(job.threads, len(wanted))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if trouble:
        raise trouble[0]


def sideload(job: Job, said: Input) -> None:
    """A release from a file, for this device: genuine, and permitted here."""
    with Archive(job.descriptor) as source:
        digest = canonical.sha256(source.raw)
        permitted(job, source, digest, believe(job, embedded_root(job), source, digest))
        wait_for_go(said, head_of(source.manifest, digest, {}))
        unload(job, source, digest)


def unpack(job: Job, said: Input) -> None:
    """A release from a file that is judged and not installed: it needs no permit. Signatures are checked where it has
    any and a root is embedded; the head says so."""
    source = Archive(job.descriptor, bare=True)
    digest = canonical.sha256(source.raw)
    signature = "verified"
    if not source.signed:
        signature = "not checked: the bundle carries none"
    elif not (Path(job.state_dir) / "trust" / "root.json").exists():
        signature = "not checked: there is no root of trust here"
    else:
        believe(job, embedded_root(job), source, digest)
    wait_for_go(said, head_of(source.manifest, digest, {"signature": signature}))
    unload(job, source, digest)


def unload(job: Job, source: Archive, digest: str) -> None:
    """The segments of a believed bundle into their folder."""
    manifest = source.manifest
    assembly = assembly_of(job, manifest, source.raw, digest)
    wanted = {segment.sha256: segment for segment in assembly.missing()}
    with Counted(len(manifest.segments())) as counted:
        counted.number = 1
        for sent in source.segments():  # all of them: what is here is read past, so that a pipe's writer ends well
            segment = wanted.get(sent.sha256)
            if segment is not None:
                assembly.add(segment, sent.data, sent.form)
            counted.number += 1
    finish(assembly, manifest, digest)


def assembly_of(job: Job, manifest: Manifest, raw: bytes, digest: str) -> Assembly:
    """The partial folder, opened."""
    assembly = Assembly(Path(job.state_dir), manifest.model, manifest, raw, digest)
    assembly.progress = lambda done, of: tell(progress=[done, of])
    assembly.open()
    return assembly


def finish(assembly: Assembly, manifest: Manifest, digest: str) -> None:
    """Complete, durable, sealed."""
    folder = assembly.complete(encode(seal(manifest, digest, manifest.reference.name, 0)))
    figures = {"fetched": assembly.fetched, "reused": assembly.reused, "peak_bytes": peak_memory()}
    tell(done={"folder": str(folder), **figures})


def peak_memory() -> int:
    """VmHWM of this process in bytes; `ru_maxrss` would show the agent's peak, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def poll(job: Job) -> None:
    """The desired document over HTTP."""
    server = connection(job)
    data = server.get(topics.DEVICE_DESIRED.replace("{id}", job.device), DOCUMENT_MAX_BYTES)
    document = json.loads(data) if data else {}
    tell(done={"desired": document.get("desired")})


def carry_out(job: Job, said: Input) -> None:
    """The job by its kind."""
    if job.kind == "online":
        online(job, said)
    elif job.kind == "archive":
        sideload(job, said)
    elif job.kind == "unpack":
        unpack(job, said)
    elif job.kind == "refresh":
        # Metadata proves itself. A thief who drove the time floor up must not cut the device off from the root that
        # takes his keys away: here the server's certificate may seem to have expired.
        tell(done=refresh(job, connection(job, 0.0))[1])
    elif job.kind == "poll":
        poll(job)
    elif job.kind in ("enrol", "renew"):
        from interlock_agent.fetcher import enrolment  # as in `refresh`: python-tuf only where it is due

        tell(done=(enrolment.enrol if job.kind == "enrol" else enrolment.renew)(job))
    else:
        raise Never(f"no such job: {job.kind}", code="bad_job")


def main() -> int:
    """0: done; 1: an error was told."""
    said = Input()
    try:
        os.nice(5)  # live inference comes first
        carry_out(messages.decode(said.line()), said)
    except InterlockError as error:
        tell(error=to_wire(error))
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        wrapped = NoSpace(str(error)) if full else Unreachable(str(error), code="io")
        tell(error=to_wire(wrapped))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
