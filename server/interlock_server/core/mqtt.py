"""MQTT 3.1.1 as the embedded broker speaks it: packets to values and back, nothing else (numbers: the OASIS standard).

Everything in here comes from strangers. A packet that is not exactly what the standard says is Invalid, and ends the
connection: nothing is guessed, nothing is repaired. Not spoken, and Invalid too: QoS 2, which nothing of ours needs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from interlock_shared.errors import Invalid
from interlock_shared.limits import DOCUMENT_MAX_BYTES

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 1, 2, 3, 4, 8, 9, 10, 11
PINGREQ, PINGRESP, DISCONNECT = 12, 13, 14

ACCEPTED, OLD_PROTOCOL, UNAVAILABLE, BAD_CREDENTIALS, NOT_AUTHORISED = 0, 1, 3, 4, 5  # CONNACK (3.2.2.3)
NO_SUBSCRIPTION = 0x80  # SUBACK (3.9.3)

CONNECT_MAX_BYTES = 16 * 1024  # id, credentials and a will of a few dozen bytes
PACKET_MAX_BYTES = DOCUMENT_MAX_BYTES + 4096  # the largest document, and its topic
TOPIC_MAX_BYTES = 256  # the longest of ours has 100
FILTERS_MAX = 16  # in one SUBSCRIBE; a device has five

PINGRESP_PACKET = b"\xd0\x00"
DISCONNECT_PACKET = b"\xe0\x00"


class RefusedConnection(Exception):
    """CONNACK with this code, then the end."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Message:
    """What travels: a topic and its payload."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True)
class Connect:
    """A CONNECT packet (3.1). User name and password are None when there is none."""

    client_id: str
    keepalive: int
    username: str | None
    password: str | None
    will: Message | None


class _Fields:
    """Reads a packet's body. Raises Invalid beyond its end."""

    def __init__(self, what: str, body: bytes) -> None:
        self._what, self._body, self._at = what, body, 0

    def take(self, size: int) -> bytes:
        part = self._body[self._at : self._at + size]
        if len(part) != size:
            raise Invalid(f"{self._what}: cut short")
        self._at += size
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def packet_id(self) -> int:
        found = self.number()
        if not found:
            raise Invalid(f"{self._what}: packet id 0")
        return found

    def data(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            found = self.data().decode()
        except UnicodeDecodeError:
            raise Invalid(f"{self._what}: not UTF-8") from None
        if "\0" in found:  # [MQTT-1.5.3-2]
            raise Invalid(f"{self._what}: a zero in a text")
        return found

    def topic(self, *, wild: bool) -> str:
        found = self.text()
        if not found or len(found.encode()) > TOPIC_MAX_BYTES:
            raise Invalid(f"{self._what}: a topic of {len(found.encode())} bytes, 1 to {TOPIC_MAX_BYTES} are taken")
        if not wild and ("#" in found or "+" in found):  # [MQTT-3.3.2-2]
            raise Invalid(f"{self._what}: a wildcard in a topic")
        return found

    @property
    def left(self) -> bool:
        return self._at < len(self._body)

    def rest(self) -> bytes:
        part = self._body[self._at :]
        self._at = len(self._body)
        return part

    def end(self) -> None:
        if self.left:
            raise Invalid(f"{self._what}: more than its fields")


def parse_connect(body: bytes) -> Connect:
    """A CONNECT packet's body. Raises Invalid, RefusedConnection."""
    fields = _Fields("CONNECT", body)
    if fields.data() != b"MQTT" or fields.byte() != 4:
        raise RefusedConnection(OLD_PROTOCOL, "speaks another protocol than MQTT 3.1.1")
    flags = fields.byte()
    if flags & 0x01 or (not flags & 0x04 and flags & 0x38) or flags & 0xC0 == 0x40:  # [MQTT-3.1.2-3, 11, 13, 15, 22]
        raise Invalid("CONNECT: flags that contradict each other")
    keepalive = fields.number()
    client_id = fields.text()
    will = None
    if flags & 0x04:
        topic, payload = fields.topic(wild=False), fields.data()
        will = Message(topic, payload, _qos("CONNECT", flags >> 3), bool(flags & 0x20))
    username = fields.text() if flags & 0x80 else None
    password = fields.text() if flags & 0x40 else None
    fields.end()
    return Connect(client_id, keepalive, username, password, will)


def parse_publish(flags: int, body: bytes) -> tuple[int, Message]:
    """(packet id, or 0 at QoS 0; the message) of a PUBLISH (3.3); `flags`: of the fixed header. Raises Invalid."""
    fields = _Fields("PUBLISH", body)
    qos = _qos("PUBLISH", flags >> 1)
    if not qos and flags & 0x08:  # [MQTT-3.3.1-2]
        raise Invalid("PUBLISH: a duplicate at QoS 0")
    topic = fields.topic(wild=False)
    number = fields.packet_id() if qos else 0
    return number, Message(topic, fields.rest(), qos, bool(flags & 0x01))


def parse_subscribe(flags: int, body: bytes) -> tuple[int, list[tuple[str, int]]]:
    """(packet id, [(filter, QoS)]) of a SUBSCRIBE (3.8). Raises Invalid."""
    fields = _Fields("SUBSCRIBE", body)
    number = _asks(fields, "SUBSCRIBE", flags)
    found: list[tuple[str, int]] = []
    while fields.left or not found:
        if len(found) == FILTERS_MAX:
            raise Invalid(f"SUBSCRIBE: more than {FILTERS_MAX} topics")
        name, qos = fields.topic(wild=True), fields.byte()
        if qos > 2:
            raise Invalid("SUBSCRIBE: reserved bits")
        found.append((name, min(qos, 1)))
    return number, found


def parse_unsubscribe(flags: int, body: bytes) -> tuple[int, list[str]]:
    """(packet id, [filter]) of an UNSUBSCRIBE (3.10). Raises Invalid."""
    fields = _Fields("UNSUBSCRIBE", body)
    number = _asks(fields, "UNSUBSCRIBE", flags)
    found: list[str] = []
    while fields.left or not found:
        if len(found) == FILTERS_MAX:
            raise Invalid(f"UNSUBSCRIBE: more than {FILTERS_MAX} topics")
        found.append(fields.topic(wild=True))
    return number, found


def parse_puback(flags: int, body: bytes) -> int:
    """The packet id of a PUBACK (3.4). Raises Invalid."""
    fields = _Fields("PUBACK", body)
    if flags:
        raise Invalid("PUBACK: reserved bits")
    number = fields.packet_id()
    fields.end()
    return number


def parse_empty(kind: int, flags: int, body: bytes) -> None:
    """PINGREQ and DISCONNECT say nothing more. Raises Invalid."""
    if flags or body:
        raise Invalid(f"packet {kind}: more than its two bytes")


def _asks(fields: _Fields, what: str, flags: int) -> int:
    if flags != 2:
        raise Invalid(f"{what}: reserved bits")
    return fields.packet_id()


def _qos(what: str, bits: int) -> int:
    qos = bits & 0x03
    if qos > 1:
        raise Invalid(f"{what}: QoS {qos} is not spoken here")
    return qos


# --- what is said ----------------------------------------------------------------------------------------------------


def connect(client_id: str) -> bytes:
    """A CONNECT with a clean session and nothing more: the certificate says who it is."""
    name = client_id.encode()
    return _packet(CONNECT << 4, b"\x00\x04MQTT\x04\x02\x00\x1e" + struct.pack("!H", len(name)) + name)


def connack(code: int) -> bytes:
    """The answer to a CONNECT; a session is never present before."""
    return bytes((CONNACK << 4, 2, 0, code))


def puback(number: int) -> bytes:
    """A message was taken."""
    return struct.pack("!BBH", PUBACK << 4, 2, number)


def suback(number: int, codes: list[int]) -> bytes:
    """What became of each filter: its QoS, or NO_SUBSCRIPTION."""
    return _packet(SUBACK << 4, struct.pack("!H", number) + bytes(codes))


def unsuback(number: int) -> bytes:
    """These are no more."""
    return struct.pack("!BBH", UNSUBACK << 4, 2, number)


def publish(message: Message, qos: int, number: int) -> bytes:
    """A message to a client."""
    topic = message.topic.encode()
    head = struct.pack("!H", len(topic)) + topic + (struct.pack("!H", number) if qos else b"")
    return _packet(PUBLISH << 4 | qos << 1 | message.retain, head + message.payload)


def _packet(first: int, body: bytes) -> bytes:
    out, left = bytearray((first,)), len(body)
    while True:
        left, digit = divmod(left, 128)
        out.append(digit | (0x80 if left else 0))
        if not left:
            return bytes(out) + body
