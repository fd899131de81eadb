"""What is another in a document than before, in lines for people. Complete: what has no words of its own is shown by
its path, so that nothing is signed unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tuf.api.metadata import Metadata

from interlock_server.publisher.keys import holder_of
from interlock_server.publisher.proposal import Proposal, label
from interlock_shared import canonical
from interlock_shared.topics import ROOT_EXTENSION

WORDLESS = {"_type", "spec_version"}  # the same in every document of a kind, or the server refuses it


def facts(metadata: Metadata[Any] | None) -> dict[str, str]:
    """Every fact of a document under a name that people know."""
    return dict(_facts(metadata)) if metadata else {}


def _facts(metadata: Metadata[Any]) -> Iterator[tuple[str, str]]:
    document = metadata.signed.to_dict()
    delegations = document.pop("delegations", None) or {}
    keys = {**document.pop("keys", {}), **delegations.pop("keys", {})}
    roles = document.pop("roles", None)
    named = roles.items() if roles else ((one["name"], one) for one in delegations.pop("roles", []))
    for role, one in named:
        for keyid in one.pop("keyids"):
            yield f"{role}: key {keyid[:12]}", _key(metadata, role, keyid, keys.get(keyid, {}))
        yield f"{role}: threshold", str(one.pop("threshold"))
        yield from _flat(f"{role}: ", {name: value for name, value in one.items() if name != "name"})
    for name, target in document.pop("targets", {}).items():
        yield f"target {name}", f"sha256 {target.get('hashes', {}).get('sha256')}, {target.get('length')} bytes"
        rest = {key: value for key, value in target.items() if key not in {"hashes", "length"}}
        yield from _flat(f"target {name} ", rest)
    authority = document.get(ROOT_EXTENSION, {})
    if isinstance(authority, dict) and isinstance(authority.get("tls_ca"), str):
        digest = canonical.sha256(authority["tls_ca"].encode())
        document[ROOT_EXTENSION] = {**authority, "tls_ca": f"PEM with sha256 {digest}"}
    yield from _flat("", {**document, **delegations})


def _key(metadata: Metadata[Any], role: str, keyid: str, key: Mapping[str, Any]) -> str:
    try:
        holder = holder_of(metadata.signed.get_key(keyid))
    except ValueError:
        holder = keyid[:12]
    public = key.get("keyval", {}).get("public", "")
    return f"{key.get('scheme')} {public.strip()} of {holder}"


def _flat(prefix: str, document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{name}.", value)
        elif name not in WORDLESS:
            yield f"{prefix}{name}", canonical.encode(value).decode().strip('"')


def lines(before: Metadata[Any] | None, after: Metadata[Any]) -> list[str]:
    """`+ what is new`, `- what goes`, `~ what is another`."""
    return _changes(facts(before), facts(after))


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            found.append(f"+ {name}: {new[name]}")
        elif name not in new:
            found.append(f"- {name}: {old[name]}")
        elif old[name] != new[name]:
            found.append(f"~ {name}: {old[name]} -> {new[name]}")
    return [repr(one)[1:-1] if "\n" in one else one for one in found]  # a name must not make a line of its own


def of_proposal(proposal: Proposal) -> Iterator[tuple[str, list[str]]]:
    """Each document that is to be signed, and what is another in it."""
    before: Metadata[Any] | None = proposal.former.root
    for role, one in proposal.documents():
        if role == "root":
            yield label(one, role), lines(before, one)
            before = one
        else:
            known = proposal.former.targets if role == "targets" else proposal.former.delegated.get(role)
            yield label(one, role), lines(known, one)
    if dict(proposal.director) != dict(proposal.former.director):
        old, new = (dict(_flat("", one)) for one in (proposal.former.director, proposal.director))
        yield "director.json", _changes(old, new)
