"""The rules of the embedded broker that need neither socket nor clock: who may what, who hears what, and how much.

1. A device publishes to its own `event`, `reported` and `presence`; the retain bit counts on the last two alone.
2. It subscribes to its own `desired` and `ack`, to `fleet/notice`, and below `blob/`. All else is refused: wildcards
   elsewhere, `$SYS`, `$share`.
3. Its will goes to its own presence.
4. The server may everything.
5. What a client may have in flight, queued, retained and said in a second is bounded: it waits, or goes, alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from interlock_server.core import mqtt
from interlock_server.core.mqtt import Message
from interlock_shared import topics
from interlock_shared.errors import Busy

SERVER = "@server"  # no device id begins with an @
RETAINED = ("reported", "presence")
BLOB_FILTER = re.compile(re.escape(topics.BLOB_PREFIX) + r"/(#|[0-9a-f]{64}/(#|\+|[0-9]{1,9}))")

SUBSCRIPTIONS_MAX = 64  # of one client
RETAINED_MAX_BYTES = 256 * 1024 * 1024  # of all devices; beyond it a report is passed on, and not kept
WINDOW = 64  # messages sent to a client that it has not acknowledged
SERVER_WINDOW = 512
QUEUE_MAX = 256  # messages behind that window; a device that is further behind is cut, and comes back
QUEUE_MAX_BYTES = 4 * 1024 * 1024
RATE_PER_S, BURST = 100.0, 2_000.0  # packets of one client; a device that empties a long outbox sends 20 at a time
BYTES_PER_S, BYTES_BURST = 1024.0 * 1024, 16.0 * 1024 * 1024


def may_publish(who: str, topic: str) -> bool:
    """Rules 1 and 4."""
    parsed = topics.parse_device_topic(topic)
    own = parsed is not None and parsed[0] == who and parsed[1] in topics.DEVICE_MAY_PUBLISH
    return who == SERVER or own


def may_subscribe(who: str, filter_: str) -> bool:
    """Rules 2 and 4."""
    if who == SERVER or filter_ == topics.NOTICE or BLOB_FILTER.fullmatch(filter_):
        return True
    parsed = topics.parse_device_topic(filter_)
    return parsed is not None and parsed[0] == who and parsed[1] in topics.DEVICE_MAY_SUBSCRIBE


def may_will(who: str, topic: str) -> bool:
    """Rules 3 and 4."""
    return who == SERVER or topic == topics.device_topic("presence", who)


def may_retain(who: str, topic: str) -> bool:
    """Whether the retain bit counts (rule 1)."""
    return who == SERVER or topic.rpartition("/")[2] in RETAINED


def matches(topic: str, filter_: str) -> bool:
    """Whether a subscription hears a topic (4.7)."""
    if topic.startswith("$") != filter_.startswith("$"):
        return False
    names, wanted = topic.split("/"), filter_.split("/")
    for at, level in enumerate(wanted):
        if level == "#":
            return at == len(wanted) - 1
        if at >= len(names) or level not in ("+", names[at]):
            return False
    return len(names) == len(wanted)


@dataclass
class Hub:
    """Who hears what, and what is retained. A message costs one look-up, however many devices there are."""

    retained: dict[str, Message] = field(default_factory=dict)
    _exact: dict[str, dict[str, int]] = field(default_factory=dict)
    _wide: dict[str, dict[str, int]] = field(default_factory=dict)
    _of: dict[str, set[str]] = field(default_factory=dict)
    _held: int = 0  # bytes of what devices retain

    def subscribe(self, who: str, filter_: str, qos: int) -> int:
        """What SUBACK says of it."""
        mine = self._of.setdefault(who, set())
        if not may_subscribe(who, filter_) or (filter_ not in mine and len(mine) >= SUBSCRIPTIONS_MAX):
            return mqtt.NO_SUBSCRIPTION
        mine.add(filter_)
        self._table(filter_).setdefault(filter_, {})[who] = qos
        return qos

    def unsubscribe(self, who: str, filter_: str) -> None:
        """No more of it."""
        self._of.get(who, set()).discard(filter_)
        table = self._table(filter_)
        table.get(filter_, {}).pop(who, None)
        if not table.get(filter_, True):
            del table[filter_]

    def leave(self, who: str) -> None:
        """The client is gone."""
        for filter_ in list(self._of.get(who, ())):
            self.unsubscribe(who, filter_)
        self._of.pop(who, None)

    def hears(self, who: str, filter_: str) -> bool:
        """Whether the client has this very subscription."""
        return filter_ in self._of.get(who, ())

    def _table(self, filter_: str) -> dict[str, dict[str, int]]:
        return self._wide if "#" in filter_ or "+" in filter_ else self._exact

    def hearers(self, topic: str) -> dict[str, int]:
        """{client: QoS} of everybody who gets a message of this topic, once each."""
        found = dict(self._exact.get(topic, {}))
        for filter_, who in self._wide.items():
            if matches(topic, filter_):
                for name, qos in who.items():
                    found[name] = max(qos, found.get(name, 0))
        return found

    def kept(self, filter_: str) -> Iterator[Message]:
        """What is retained for a new subscription."""
        if self._table(filter_) is self._exact:
            if filter_ in self.retained:
                yield self.retained[filter_]
            return
        yield from [one for topic, one in self.retained.items() if matches(topic, filter_)]

    def retain(self, who: str, message: Message) -> None:
        """Keep it in the place of the one before; an empty one ends that (3.3.1.3)."""
        before = self.retained.pop(message.topic, None)
        if who == SERVER:  # a device and the server share no topic
            if message.payload:
                self.retained[message.topic] = message
            return
        self._held -= len(before.payload) if before else 0
        if message.payload and self._held + len(message.payload) <= RETAINED_MAX_BYTES:
            self.retained[message.topic] = message
            self._held += len(message.payload)


@dataclass
class Outgoing:
    """Messages to one client: a window of unacknowledged ones, then a queue with an end."""

    window: int = WINDOW
    _flying: set[int] = field(default_factory=set)
    _queue: deque[tuple[Message, int]] = field(default_factory=deque)
    _queued: int = 0
    _last: int = 0

    def offer(self, message: Message, qos: int) -> bytes:
        """What is to be written now. Raises Busy: the client is too far behind."""
        qos = min(qos, message.qos)
        if not self._queue and (not qos or len(self._flying) < self.window):
            return self._packet(message, qos)
        self._queue.append((message, qos))
        self._queued += len(message.payload)
        if len(self._queue) > QUEUE_MAX or self._queued > QUEUE_MAX_BYTES:
            raise Busy(f"{len(self._queue)} messages of {self._queued} bytes wait for it")
        return b""

    def acknowledged(self, number: int) -> bytes:
        """What is to be written now that there is room."""
        self._flying.discard(number)
        out = b""
        while self._queue and len(self._flying) < self.window:
            message, qos = self._queue.popleft()
            self._queued -= len(message.payload)
            out += self._packet(message, qos)
        return out

    @property
    def room(self) -> bool:
        """Whether the next message would go out at once."""
        return len(self._flying) < self.window

    def _packet(self, message: Message, qos: int) -> bytes:
        if qos:
            self._last = self._last % 0xFFFF + 1
            while self._last in self._flying:
                self._last = self._last % 0xFFFF + 1
            self._flying.add(self._last)
        return mqtt.publish(message, qos, self._last)


@dataclass
class Allowance:
    """How much a client may say: tokens that come back with time. Time: seconds of a clock that only grows."""

    at: float
    _packets: float = BURST
    _bytes: float = BYTES_BURST

    def spend(self, size: int, now: float) -> float:
        """Count a packet of `size` bytes; the seconds to wait before the next one is read."""
        gone, self.at = max(0.0, now - self.at), now
        self._packets = min(BURST, self._packets + gone * RATE_PER_S) - 1
        self._bytes = min(BYTES_BURST, self._bytes + gone * BYTES_PER_S) - size
        return max(0.0, -self._packets / RATE_PER_S, -self._bytes / BYTES_PER_S)
