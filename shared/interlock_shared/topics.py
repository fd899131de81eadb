"""Every MQTT topic and HTTP path, once. `{}` parts are filled by the functions; routes are aiohttp patterns."""

from __future__ import annotations

PREFIX = "interlock/v1"

DESIRED = PREFIX + "/device/{id}/desired"  # server -> device, retained, QoS 1: signed desired document
REPORTED = PREFIX + "/device/{id}/reported"  # device -> server, retained, QoS 1
EVENT = PREFIX + "/device/{id}/event"  # device -> server, QoS 1: outbox entries
ACK = PREFIX + "/device/{id}/ack"  # server -> device, QoS 1: (outbox epoch, gap-free number)
PRESENCE = PREFIX + "/device/{id}/presence"  # device -> server, retained, last will
NOTICE = PREFIX + "/fleet/notice"  # server -> all: metadata moved on
BLOB_PREFIX = PREFIX + "/blob"  # BLOB_PREFIX/{sha256}/…: server -> devices: payload over MQTT
DEVICE_TOPICS = {"desired": DESIRED, "reported": REPORTED, "event": EVENT, "ack": ACK, "presence": PRESENCE}
DEVICE_MAY_PUBLISH = ("reported", "event", "presence")
DEVICE_MAY_SUBSCRIBE = ("desired", "ack")


def device_topic(kind: str, device: str) -> str:
    """The topic of one kind (`desired`, `reported`, `event`, `ack`, `presence`) for one device."""
    return DEVICE_TOPICS[kind].replace("{id}", device)


def any_device(kind: str) -> str:
    """The subscription for one kind over all devices."""
    return DEVICE_TOPICS[kind].replace("{id}", "+")


def parse_device_topic(topic: str) -> tuple[str, str] | None:
    """(device id, kind) of a device topic; None for any other topic."""
    parts = topic.split("/")
    if len(parts) != 5 or "/".join(parts[:2]) != PREFIX or parts[2] != "device" or parts[4] not in DEVICE_TOPICS:
        return None
    return parts[3], parts[4]


# --- HTTP ---------------------------------------------------------------------------------------------------------

STATUS = "/v1/status"
ONLINE_KEYS = "/v1/trust/keys"  # GET: public parts of the server's online keys (snapshot, timestamp, director)
TRUST = "/v1/trust"  # POST: the first root and targets metadata; GET: versions and expiries
METADATA = "/v1/metadata/{name}"  # GET: TUF metadata files, e.g. 1.root.json, timestamp.json
BLOBS_MISSING = "/v1/blobs/missing"  # POST {"sha256": [...]}: which of them are not here
BLOB = "/v1/blobs/{sha256}"  # PUT (publisher), GET with Range (device)
RELEASES = "/v1/releases"
RELEASE = "/v1/releases/{model}/{version}"
MANIFEST = "/v1/releases/{model}/{version}/manifest"
PERMIT = "/v1/releases/{model}/{version}/permit"
PROPOSAL = "/v1/releases/{model}/{version}/proposal"  # GET: what awaits signatures; DELETE: drop it
SIGNATURES = "/v1/releases/{model}/{version}/signatures"  # POST: one more signature of it
WITHDRAW = "/v1/releases/{model}/{version}/withdraw"
RESTORE = "/v1/releases/{model}/{version}/restore"
REVOKE = "/v1/releases/{model}/{version}/revoke"
ROLLOUTS = "/v1/rollouts"
ROLLOUT = "/v1/rollouts/{id}"
ROLLOUT_ABORT = "/v1/rollouts/{id}/abort"
DEVICES = "/v1/devices"
DEVICE = "/v1/devices/{id}"
DEVICE_UNPIN = "/v1/devices/{id}/unpin"  # POST: what a file brought may be replaced
DEVICE_HISTORY = "/v1/devices/{id}/history"
DEVICE_VERDICTS = "/v1/devices/{id}/verdicts"
DEVICE_VERDICT_PLOT = "/v1/devices/{id}/verdicts/{number}.svg"  # GET: its latencies as a picture
DEVICE_RECONCILE = "/v1/devices/{id}/reconcile"  # POST: go on from what a device that is ahead reports
DEVICE_DESIRED = "/v1/devices/{id}/desired"  # GET: the poll that backs up MQTT (device credentials)
DEVICE_CERTIFICATE = "/v1/devices/{id}/certificate"  # POST: a certificate for a fresh key (the device itself)
DEVICE_APPROVE = "/v1/devices/{id}/approve"  # POST: let a device in that waits
DEVICE_REFUSE = "/v1/devices/{id}/refuse"
DEVICE_REVOKE = "/v1/devices/{id}/revoke"  # POST: nothing of it is believed any more
DEVICE_TOKENS = "/v1/device-tokens"  # POST: an enrolment token; GET, DELETE
ENROL = "/v1/enrol"  # POST: token and signing request in, certificate out
EVENTS = "/v1/events"  # GET: newest first
API_TOKENS = "/v1/tokens"  # POST, GET, DELETE: bearer tokens with roles
AUDIT = "/v1/audit"
OPENAPI = "/v1/openapi.json"
METRICS = "/metrics"


KEY_HOLDER = "x-interlock-holder"  # field of a public key in signed metadata: who holds the private part


def target_name(model: str, version: str) -> str:
    """The TUF target of a release: its manifest. Matches the delegation `MODEL/*/manifest.json`."""
    return f"{model}/{version}/manifest.json"


ROOT_EXTENSION = "x-interlock"  # field of the root metadata: {"tls_ca": PEM of the server's TLS authority}
ROOT_SIDELOAD = "sideload"  # in it: {key id: key}, the keys that may sign permits beside the director
DIRECTOR_TARGET = "director.json"  # signed by `targets`: the director's public key and epoch


def release_role(model: str) -> str:
    """The delegated TUF role of a model."""
    return f"release-{model}"
