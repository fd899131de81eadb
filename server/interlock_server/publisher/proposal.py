"""What keyholders sign: the next root, targets and release roles in one file that is carried from person to person.

Rules of the file:
- Everything in it is public. Each holder adds signatures on a machine of their own; copies are put together again.
- It holds what it follows from, so that what is asked for can be shown as a difference, whoever made the file.
- Root N + 1 counts when a threshold of root N and one of its own have signed it; targets when root's, a release role
  when targets' threshold has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from interlock_server.publisher.keys import KeyFolder, holder_of
from interlock_shared import canonical, durable
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted

SCHEMA = "interlock.proposal/1"
FILE_MAX_BYTES = 64 * 2**20  # all roots of 256 rotations, and release roles of many models with all their releases


@dataclass(frozen=True)
class State:
    """The metadata that is trusted: all roots from the first known one on, targets, release roles by name."""

    roots: tuple[Metadata[Root], ...]
    targets: Metadata[Targets] | None
    delegated: Mapping[str, Metadata[Targets]]
    director: Mapping[str, Any]

    @property
    def root(self) -> Metadata[Root] | None:
        """The newest root."""
        return self.roots[-1] if self.roots else None


@dataclass(frozen=True)
class Need:
    """Whose signatures one document needs: the keys that count, who has signed, how many are missing."""

    what: str  # root 2, targets 3, release-detector 5
    by: str  # root 1, root 2, targets 3
    threshold: int
    signed: Mapping[str, Key]
    unsigned: Mapping[str, Key]

    @property
    def missing(self) -> int:
        """How many more signatures it takes."""
        return max(0, self.threshold - len(self.signed))


@dataclass(frozen=True)
class Proposal:
    """What is asked for (`roots`, `targets`, `delegated`: only what is new), and what it follows from."""

    former: State
    roots: tuple[Metadata[Root], ...] = ()
    targets: Metadata[Targets] | None = None
    delegated: Mapping[str, Metadata[Targets]] = field(default_factory=dict)
    director: Mapping[str, Any] = field(default_factory=dict)

    @property
    def after(self) -> State:
        """The state once it is accepted."""
        delegated = {**self.former.delegated, **self.delegated}
        return State((*self.former.roots, *self.roots), self.targets or self.former.targets, delegated, self.director)

    def needs(self) -> list[Need]:
        """All signatures that it takes, given or not."""
        after, before = self.after, self.former.root
        if after.root is None or after.targets is None:
            raise Invalid("proposal: it has no root and no targets", code="bad_proposal")
        found = []
        for root in self.roots:
            found += [_need(one, "root", root) for one in ((before, root) if before else (root,))]
            before = root
        if self.targets is not None:
            found.append(_need(after.root, "targets", self.targets))
        found += [_need(after.targets, role, one) for role, one in self.delegated.items()]
        return found

    def missing(self) -> list[Need]:
        """What is not signed by enough keys."""
        return [one for one in self.needs() if one.missing]

    def documents(self) -> Iterator[tuple[str, Metadata[Any]]]:
        """What is to be signed, by role."""
        yield from (("root", one) for one in self.roots)
        if self.targets is not None:
            yield "targets", self.targets
        yield from self.delegated.items()

    def upload(self) -> dict[str, Any]:
        """What is posted. Raises Untrusted (`signatures_missing`)."""
        lacking = self.missing()
        if lacking:
            words = "; ".join(words_of(one) for one in lacking)
            raise Untrusted(f"not signed by enough keys yet: {words}", code="signatures_missing")
        after = self.after
        if after.root is None or after.targets is None:
            raise Invalid("proposal: it has no root and no targets", code="bad_proposal")
        return {
            "chain": [one.to_dict() for one in self.roots[:-1]],
            "root": after.root.to_dict(),
            "targets": after.targets.to_dict(),
            "delegated": {role: one.to_dict() for role, one in self.delegated.items()},
            "director": dict(self.director),
        }

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical.encode({"schema": SCHEMA, "former": _dump(self.former), "next": _dump(self)})


def words_of(need: Need) -> str:
    """One line: who has signed, who else can."""
    signed = ", ".join(map(holder_of, need.signed.values())) or "nobody"
    words = f"{need.what} by {need.by}: {len(need.signed)} of {need.threshold}, signed by {signed}"
    if need.missing:
        words += f"; {need.missing} more of: " + ", ".join(map(holder_of, need.unsigned.values()))
    return words


def label(metadata: Metadata[Any], role: str) -> str:
    """`root 2`."""
    return f"{role} {metadata.signed.version}"


def _need(delegator: Metadata[Any], role: str, metadata: Metadata[Any]) -> Need:
    kind = "root" if isinstance(delegator.signed, Root) else "targets"
    try:
        result = delegator.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except (ValueError, KeyError, RepositoryError) as bad:
        raise Invalid(f"proposal: {role}: {bad}", code="bad_proposal") from None
    return Need(label(metadata, role), label(delegator, kind), result.threshold, result.signed, result.unsigned)


def _dump(one: State | Proposal) -> dict[str, Any]:
    return {
        "roots": [root.to_dict() for root in one.roots],
        "targets": one.targets.to_dict() if one.targets else None,
        "delegated": {role: metadata.to_dict() for role, metadata in one.delegated.items()},
        "director": dict(one.director),
    }


def parse(data: bytes, what: str = "proposal") -> Proposal:
    """A proposal from a file: well-formed, and hanging together from its first root on. Raises Invalid, Untrusted."""
    document = canonical.decode(data, limit=FILE_MAX_BYTES, what=what)
    if document.get("schema") != SCHEMA:
        raise Invalid(f"{what}: it is no file of `interlock root`: schema {document.get('schema')!r}", field="schema")
    try:
        former, following = _state(document["former"]), _state(document["next"])
    except Exception as bad:  # noqa: BLE001 - python-tuf lets parsers' own errors through
        raise Invalid(f"{what}: {type(bad).__name__}: {bad}", code="bad_proposal") from None
    check_state(former)
    made = Proposal(former, following.roots, following.targets, following.delegated, following.director)
    made.needs()
    return made


def _state(document: Mapping[str, Any]) -> State:
    roots = tuple(Metadata[Root].from_dict(deepcopy(one)) for one in document["roots"])
    targets = document["targets"]
    loaded = Metadata[Targets].from_dict(deepcopy(targets)) if targets is not None else None
    delegated = {str(role): Metadata[Targets].from_dict(deepcopy(one)) for role, one in document["delegated"].items()}
    for one, kind in [*((root, Root) for root in roots), *((two, Targets) for two in [loaded, *delegated.values()])]:
        if one is not None and not isinstance(one.signed, kind):
            raise ValueError(f"{one.signed.type} metadata in the place of {kind.__name__.lower()}")
    return State(roots, loaded, delegated, dict(document["director"]))


def load(path: Path) -> Proposal:
    """A proposal from its file. Raises NotFound, Forbidden, Invalid, Untrusted."""
    try:
        return parse(path.read_bytes(), path.name)
    except FileNotFoundError:
        raise NotFound(f"there is no {path}", code="no_proposal") from None
    except OSError as bad:
        raise Forbidden(f"{path}: {bad.strerror}", code="no_proposal") from None


def save(path: Path, proposal: Proposal) -> None:
    """Write it. Raises Forbidden."""
    try:
        durable.replace_file(path.absolute(), proposal.to_bytes() + b"\n", mode=0o644)
    except OSError as bad:
        raise Forbidden(f"{path}: {bad.strerror}", code="cannot_write") from None


def check_state(state: State, trusted: bytes | None = None) -> None:
    """That root follows root, and that each has signed what it is said to; expiry apart, since what has expired is what
    must be renewed. `trusted`: the root that this side knows, which must be among them.

    Raises Untrusted (`bad_signature`, `foreign_root`).
    """
    for before, after in zip(state.roots, state.roots[1:], strict=False):
        if after.signed.version != before.signed.version + 1:
            raise Untrusted(
                f"metadata: root {after.signed.version} follows {before.signed.version}", code="bad_signature"
            )
        _verify(before, "root", after)
    for root in state.roots[-1:]:
        _verify(root, "root", root)
        if state.targets is not None:
            _verify(root, "targets", state.targets)
    if state.targets is not None:
        for role, one in state.delegated.items():
            _verify(state.targets, role, one)
    if trusted is not None and state.roots and not _knows(state.roots, trusted):
        raise Untrusted("the root that you trust is not among these roots: another fleet's?", code="foreign_root")


def _verify(delegator: Metadata[Any], role: str, metadata: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, metadata)
    except (RepositoryError, ValueError) as bad:
        raise Untrusted(f"metadata: {role} {metadata.signed.version}: {bad}", code="bad_signature") from None


def _knows(roots: Iterable[Metadata[Root]], trusted: bytes) -> bool:
    mine = Metadata[Root].from_bytes(trusted)
    return any(one.signed_bytes == mine.signed_bytes for one in roots)


def sign(proposal: Proposal, folder: KeyFolder) -> list[str]:
    """Add the signatures of all keys in the folder that count and have not signed; what was signed, by whom.

    Raises Forbidden, Invalid, Unreachable: what a key raises.
    """
    done: dict[tuple[str, str], str] = {}
    documents = {label(one, role): one for role, one in proposal.documents()}
    opened: dict[str, Signer] = {}
    for need in proposal.needs():
        wanted = [keyid for keyid in need.unsigned if (need.what, keyid) not in done]
        opened.update({one.public_key.keyid: one for one in folder.signers(set(wanted) - opened.keys())})
        for keyid in (one for one in wanted if one in opened):
            documents[need.what].sign(opened[keyid], append=True)
            done[need.what, keyid] = f"{need.what} with {holder_of(need.unsigned[keyid])}"
    return list(done.values())


def merge(copies: Iterable[Proposal]) -> Proposal:
    """One proposal with the signatures of all its copies. Raises Conflict (`other_proposal`)."""
    first, *others = copies
    for other in others:
        mine, theirs = list(first.documents()), list(other.documents())
        same = [(role, one.signed_bytes) for role, one in mine] == [(role, one.signed_bytes) for role, one in theirs]
        if not same or first.director != other.director:
            raise Conflict(
                "these files ask for different things; only copies of one file go together", code="other_proposal"
            )
        good = {(need.what, keyid) for need in other.needs() for keyid in need.signed}
        for (role, one), (_, two) in zip(mine, theirs, strict=True):
            for keyid, signature in two.signatures.items():
                if (label(two, role), keyid) in good:
                    one.signatures[keyid] = signature
    return first
