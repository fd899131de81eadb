"""Every limit both ends share: name, unit, reason."""

from __future__ import annotations

MIB = 1024 * 1024

MANIFEST_MAX_BYTES = (
    8 * MIB
)  # 1 TiB of payload at 4 MiB a segment is 262,144 segments of about 90 bytes: rather cut larger
DOCUMENT_MAX_BYTES = (
    1 * MIB
)  # a desired, permit, reported or event document; MQTT brokers commonly cap at 1 MiB or above
VERDICT_MAX_BYTES = 768 * 1024  # a verdict travels inside one event; raw samples beyond it stay on the device
METADATA_MAX_BYTES = 4 * MIB  # one TUF metadata file
ROOT_MAX_BYTES = 512 * 1024  # of root metadata: keys and thresholds, and a certificate

SEGMENT_BYTES = 4 * MIB  # cut length; large enough that a request costs little, small enough to be verified in memory
SEGMENT_MAX_BYTES = 64 * MIB  # a manifest that declares longer ones is refused: a segment is held in memory once
FILES_MAX = 256  # files in a bundle
SEGMENTS_MAX = 65_536  # segments in a bundle (256 GiB at 4 MiB)
FILE_MAX_BYTES = 256 * 1024 * MIB  # one file: 256 GiB, above any model for an edge device
NAME_MAX = 64  # model, version, variant, device id, label key
FILE_NAME_MAX = 128  # a file's name inside a bundle
TENSORS_MAX = 64  # inputs or outputs of a model
RANK_MAX = 16  # axes of a tensor
LABELS_MAX = 100_000  # classes of a model
SLICES_MAX = 64  # groups of golden items: each is judged on its own, and a person reads the rows

COMPRESS_WORTH = 0.95  # a segment travels compressed when that saves at least 5 %: below, the CPU is not worth it

PERMIT_MAX_S = 3660 * 86_400  # a permit of more than ten years is a mistake

ATTEMPTS_MAX = 3  # for each unit, payload digest and assignment, across generations
UNJUDGED_MAX = 10  # tries that were given back, since the gate came to no verdict; then a person decides
INTERRUPTIONS_MAX = 5  # interrupted trials, a budget of their own; then a person decides

LEASE_S = 30.0  # the trial's lease in the host
DRAIN_MAX_S = 10.0  # what promote waits for inside the old worker
EVENT_NOTE_MAX = 2_000  # characters of free text in an event

MQTT_INFLIGHT = 20  # unacknowledged outbox entries on the way
POLL_S = 900.0  # backstop: how often a connected device asks over HTTPS, jittered
BACKOFF_FIRST_S = 1.0  # full jitter between 0 and the cap, doubling
BACKOFF_CAP_S = 60.0
