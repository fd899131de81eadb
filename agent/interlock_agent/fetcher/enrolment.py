"""How a device gets its certificate, and the next one.

Enrolment, step by step; nothing secret leaves before step 4:

 1. The first root metadata is fetched from whoever answers, and checked against the hash that the technician was given.
 2. The chain of later roots is walked by TUF's rules: each is signed by the one before it and by itself.
 3. The newest names the authority of the server's TLS certificate.
 4. Over TLS with a certificate of that authority, and only so, token and signing request are sent.
 5. Root, authority and pair are kept durably; `identity.json` is last: before it the device is not enrolled.

A key is made once and kept until an answer came, so that asking again after a lost answer is the same question.
"""

from __future__ import annotations

import json
import logging
import ssl
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from interlock_agent.fetcher import credentials
from interlock_agent.fetcher.http import Server
from interlock_agent.fetcher.messages import Job
from interlock_shared import __version__, canonical, durable, topics
from interlock_shared.errors import InterlockError, Invalid, Later, Unreachable, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, METADATA_MAX_BYTES

MAX_ROTATIONS = 256  # of the root, before a first contact: one a quarter is 64 years

log = logging.getLogger("interlock.enrolment")


def enrol(job: Job) -> dict[str, Any]:
    """The identity's facts, `status` `enrolled` or `waiting` (then nothing but the key was kept: ask again).

    Raises Untrusted (`root_mismatch`, `bad_root`, `no_tls_ca`, `unknown_server`, `bad_certificate`), Unreachable,
    Invalid, what `credentials.key_at` raises, and what the server refuses with (`token_used`, `token_expired`,
    `device_exists`, …).
    """
    state = Path(job.state_dir)
    if not job.server.startswith("https://"):
        raise Invalid(f"{job.server}: a token is sent to an https:// address alone", field="--server", code="no_tls")
    credentials.check_place(job.key, job.key_type)
    source = Server(job.server, credentials.unverified())
    try:
        first, newest = roots(source, job.root_sha256)
    finally:
        source.close()
    authority = credentials.authority_of(newest)
    folder = credentials.prepare(state)
    key = _enrolling_key(folder, job.key, job.key_type)
    request = {
        "token": job.token,
        "csr": credentials.request_of(key, job.name),
        "name": job.name or None,
        "agent": __version__,
    }
    server = Server(job.server, credentials.context(authority, None))
    try:
        answer = server.post(topics.ENROL, request, DOCUMENT_MAX_BYTES)
    except Unreachable as bad:
        if bad.code != "unknown_server":
            raise
        words = f"{bad.message}; it is not the server that the root names, and the token was not sent"
        raise Untrusted(words, code="unknown_server") from None
    finally:
        server.close()
    if answer.get("status") == "waiting":
        return answer
    certificate = str(answer.pop("certificate"))
    credentials.check_certificate(certificate, key, str(answer.get("device")))
    facts = {**answer, "server": answer.get("server") or job.server, "key": credentials.place_of(key)}
    _keep(state, first, authority, key, certificate, facts)
    durable.remove(folder / "enrolling.pem")
    return answer


def _enrolling_key(folder: Path, uri: str, kind: str) -> credentials.PrivateKey:
    path = folder / "enrolling.pem"
    if path.exists():
        begun = credentials.load_key(path)
        if credentials.place_of(begun) == uri:
            return begun
    key = credentials.key_at(uri, kind)
    durable.replace_file(path, credentials.pem_of(key))
    return key


def _keep(
    state: Path, root: bytes, authority: str, key: credentials.PrivateKey, certificate: str, facts: dict[str, Any]
) -> None:
    (state / "trust").mkdir(parents=True, exist_ok=True, mode=0o700)
    durable.replace_file(state / "trust" / "root.json", root)
    durable.replace_file(credentials.authority_file(state), authority.encode(), mode=0o644)
    renewed = credentials.renewed_file(state)
    if renewed.exists():
        durable.remove(renewed)  # of the identity before this one
    credentials.keep_pair(credentials.pair_file(state), key, certificate)
    credentials.show_certificate(state)
    facts = {"schema": "interlock.identity/1", **facts}
    durable.replace_file(state / "identity" / "identity.json", json.dumps(facts, indent=2).encode() + b"\n")


# --- steps 1 and 2 ---------------------------------------------------------------------------------------------------


def roots(source: Server, sha256: str) -> tuple[bytes, bytes]:
    """The first root, whose hash is the given one, and the newest that the chain leads to. Raises Untrusted."""
    first = source.metadata("1.root.json", METADATA_MAX_BYTES)
    if first is None:
        raise Untrusted("the server has no trust metadata yet: `interlock keys init`", code="metadata_missing")
    digest = canonical.sha256(first)
    if digest != sha256.lower():
        raise Untrusted(f"the server's root is {digest}, {sha256} was expected", code="root_mismatch")  # 1
    data, trusted = first, _root(first)
    for version in range(trusted.version + 1, trusted.version + 1 + MAX_ROTATIONS):  # 2
        following = source.metadata(f"{version}.root.json", METADATA_MAX_BYTES)
        if following is None:
            break
        try:
            loaded: Metadata[Any] = Metadata.from_bytes(following)
            root = _root(following)
            for judge in (trusted, root):
                judge.verify_delegate(Root.type, loaded.signed_bytes, loaded.signatures)
        except (RepositoryError, ValueError) as bad:
            raise Untrusted(f"root {version}: {bad}", code="bad_root") from None
        if root.version != version:
            raise Untrusted(f"root {version}: calls itself {root.version}", code="bad_root")
        data, trusted = following, root
    return first, data


def _root(data: bytes) -> Root:
    try:
        signed = Metadata[Any].from_bytes(data).signed
    except RepositoryError as bad:
        raise Untrusted(f"root: {bad}", code="bad_root") from None
    if not isinstance(signed, Root):
        raise Untrusted(f"root: it is {signed.type} metadata", code="bad_root")
    return signed


# --- renewal ---------------------------------------------------------------------------------------------------------


def renew(job: Job) -> dict[str, Any]:
    """A fresh key (a token's stays) and its certificate in place of the old pair, which stays until the new one was
    used once. Cut short at any point, the next call goes on. Raises Unreachable, Untrusted, Forbidden
    (`device_revoked`), Invalid.
    """
    state = Path(job.state_dir)
    following = credentials.renewed_file(state)
    if not following.exists():
        key = credentials.following(credentials.load_key(credentials.pair_file(state)))
        path = topics.DEVICE_CERTIFICATE.replace("{id}", job.device)
        body = {"csr": credentials.request_of(key, job.device)}
        answer = _with(job, credentials.of_device(state), lambda server: server.post(path, body, DOCUMENT_MAX_BYTES))
        certificate = str(answer.get("certificate"))
        credentials.check_certificate(certificate, key, job.device)
        credentials.keep_pair(following, key, certificate)
    try:
        _used_once(job, following)
    except InterlockError as bad:
        if isinstance(bad, Later) and bad.code != "certificate_refused":
            # A server that does not even let it in may end the connection without a word, as a broken network does.
            # Where the old one is heard at the same time, it is the new one that is not.
            _used_once(job, credentials.pair_file(state))
        durable.remove(following)  # the server does not know it: begin anew with the old one
        raise Unreachable(f"the new certificate is not taken: {bad.message}", code="certificate_refused") from None
    credentials.take_over(state)
    return {"renewed": True}


def _used_once(job: Job, pair: Path) -> None:
    path = topics.DEVICE_DESIRED.replace("{id}", job.device)
    context = credentials.of_device(Path(job.state_dir), pair)
    _with(job, context, lambda server: server.get(path, DOCUMENT_MAX_BYTES))


def _with(job: Job, context: ssl.SSLContext | None, ask: Any) -> Any:
    server = Server(job.server, context, job.clock_floor)
    try:
        return ask(server)
    finally:
        server.close()
