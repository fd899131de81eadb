"""The tables, as they are now. The folder `versions` says how a database of any age becomes this; a test shows that
both are the same.

Times are text (RFC 3339 in UTC with microseconds), which sorts as time does. Secrets are digests.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, String, nullable=null)


api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", String, primary_key=True),
    _text("name"),
    _text("role"),
    Column("sha256", String, nullable=False, unique=True),
    _text("created_at"),
    _text("created_by"),
    _text("revoked_at", null=True),
)

device_tokens = Table(
    "device_tokens",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("labels", JSON, nullable=False),
    _text("device", null=True),
    Column("uses", Integer, nullable=False),  # more than one: each device waits for approval
    Column("used", Integer, nullable=False),
    _text("created_at"),
    _text("created_by"),
    _text("expires_at"),
    _text("revoked_at", null=True),
)

# Who asked to be let in, with which key, by which token: the same question gets the same answer.
enrolments = Table(
    "enrolments",
    metadata,
    Column("token", String, primary_key=True),
    Column("keyid", String, primary_key=True),
    _text("device"),
    Column("key", JSON, nullable=False),
    _text("csr"),
    _text("agent"),
    _text("address"),
    _text("asked_at"),
    _text("state"),
    _text("certificate", null=True),
    Index("ix_enrolments_state", "state"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String, primary_key=True),
    _text("device"),
    _text("keyid"),
    Column("key", JSON, nullable=False),
    _text("issued_at"),
    _text("expires_at"),
    _text("first_used_at", null=True),
    _text("revoked_at", null=True),
    _text("reason"),
    Index("ix_certificates_device", "device"),
)

devices = Table(
    "devices",
    metadata,
    Column("id", String, primary_key=True),
    Column("labels", JSON, nullable=False),
    Column("key", JSON, nullable=False),
    _text("enrolled_at"),
    _text("agent"),
    Column("online", Boolean, nullable=False),
    _text("last_seen", null=True),
    Column("reported", JSON, nullable=True),
    # The newest desired document: its counter only grows within its epoch, and is stored before the document is sent.
    Column("epoch", BigInteger, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("desired", LargeBinary, nullable=True),
    Column("desired_units", JSON, nullable=True),
    _text("desired_issued_at", null=True),
    _text("desired_sideload", null=True),  # the policy in it
    Column("sideloads", JSON, nullable=True),  # by unit: a file's release that stands; see core/sideload.py
    Column("refused", Integer, nullable=False),
    _text("revoked_at", null=True),
    Column("clone", JSON, nullable=True),  # what says that the identity is in use twice
    Column("instances", JSON, nullable=False),  # the newest starts of its agent that were heard of
)

releases = Table(
    "releases",
    metadata,
    Column("model", String, primary_key=True),
    Column("version", String, primary_key=True),
    _text("manifest_sha256"),
    _text("payload_sha256"),
    Column("size", BigInteger, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    # Kept until the repository holds it: a start after a power cut finishes what was begun.
    Column("metadata", LargeBinary, nullable=True),
    _text("state"),
    _text("created_at"),
    _text("published_by"),
    Column("signatures", JSON, nullable=False),  # [{keyid, by, at}, …]: who signed, whose token sent it
    # Why it is withdrawn or revoked, since when, by whom; `ended_number`: the last rollout before that.
    _text("ended_at", null=True),
    _text("ended_by", null=True),
    _text("ended_reason", null=True),
    Column("ended_number", BigInteger, nullable=True),
    Column("revoked_by", JSON, nullable=False),  # as `signatures`, of the revocation
)

# What awaits signatures: one a release role. It is nowhere else until there are enough.
proposals = Table(
    "proposals",
    metadata,
    Column("model", String, primary_key=True),
    _text("version"),
    _text("action"),  # publish, revoke
    Column("role_version", BigInteger, nullable=False),
    Column("manifest", LargeBinary, nullable=True),  # of a publish
    Column("metadata", LargeBinary, nullable=False),
    Column("signatures", JSON, nullable=False),
    _text("reason"),  # of a revocation
    _text("created_at"),
    _text("created_by"),
    _text("expires_at"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String, primary_key=True),
    _text("form"),
    Column("size", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    _text("created_at"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String, primary_key=True),
    Column("number", BigInteger, nullable=False, unique=True),
    _text("model"),
    _text("version"),
    _text("manifest_sha256"),
    Column("to", JSON, nullable=False),
    _text("created_at"),
    _text("created_by"),
    _text("aborted_at", null=True),
    _text("ended"),  # "", aborted, withdrawn, revoked: why it goes no further
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", String, primary_key=True),
    Column("number", BigInteger, nullable=False),  # of the rollout: a newer wish for the same unit has a higher one
    _text("rollout"),
    _text("device"),
    _text("unit"),
    _text("version"),
    _text("manifest_sha256"),
    Column("cancelled", Boolean, nullable=False),
    # Derived from events; kept for listings, computed again whenever an event of it arrives.
    _text("state"),
    _text("reason"),
    _text("updated_at"),
    UniqueConstraint("rollout", "device", "unit", name="uq_assignments"),
    Index("ix_assignments_device", "device", "unit"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _text("device"),
    _text("epoch"),
    Column("number", BigInteger, nullable=False),
    _text("received_at"),
    _text("kind"),
    _text("assignment", null=True),
    Column("document", JSON, nullable=False),
    UniqueConstraint("device", "epoch", "number", name="uq_events"),
    Index("ix_events_assignment", "assignment"),
    Index("ix_events_kind", "kind"),
)

epochs = Table(
    "epochs",
    metadata,
    Column("device", String, primary_key=True),
    Column("epoch", String, primary_key=True),
    Column("rank", Integer, nullable=False),  # in which order the server saw the device's outboxes
    Column("upto", BigInteger, nullable=False),
    Column("lost", JSON, nullable=False),  # [[first, last], …]: numbers that neither side has any more
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _text("device"),
    _text("received_at"),
    Column("document", JSON, nullable=True),
    Column("envelope", LargeBinary, nullable=False),
    Column("verified", Boolean, nullable=False),
    _text("error"),
    Index("ix_verdicts_device", "device"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _text("at"),
    _text("who"),
    _text("role"),
    _text("address"),
    _text("action"),
    _text("target"),
    Column("detail", JSON, nullable=False),
)
