"""Whose process is at the other end of a connection, on this machine.

Rules of the file:
- A Unix socket knows (`SO_PEERCRED`, as it was when the peer connected). Of a TCP connection the kernel's table tells:
  the peer's own end is in it when the peer is on this machine, and only an established one with an inode counts, since
  the remains of a closed one are shown as root's.
- What is not certain is NO_USER, who owns nothing. So is whom the kernel calls the overflow user: it says so of all
  users that a namespace does not know.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any
from urllib.parse import unquote

from interlock_agent.host.wire import NO_USER

_CREDENTIALS = struct.Struct("3I")  # struct ucred: pid, uid, gid
_ESTABLISHED = "01"
OVERFLOW = 65534  # /proc/sys/kernel/overflowuid, as nobody changes it


def user(connection: Any) -> int:
    """The user id at the other end of a connected socket, or NO_USER."""
    found = _found(connection)
    return NO_USER if found == OVERFLOW else found


def _found(connection: Any) -> int:
    try:
        if connection.family == socket.AF_UNIX:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(raw)[1])
        return _of_tcp(connection.family, connection.getpeername(), connection.getsockname())
    except (OSError, ValueError):
        return NO_USER


def of_call(peer: str, listen: str) -> int:
    """Of a gRPC call: its peer as the library writes it (`ipv4:127.0.0.1:4711`, `ipv6:%5B::1%5D:4711`), and the address
    that we listen on, which is one of this machine alone. There is no connection to ask."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    ours, _, our_port = listen.rpartition(":")
    family = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}.get(kind)
    if family is None:
        return NO_USER
    ours = ours.strip("[]")
    if ours == "localhost":
        ours = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    try:
        found = _of_tcp(family, (host.strip("[]"), int(port)), (ours, int(our_port)))
    except (OSError, ValueError):
        return NO_USER
    return NO_USER if found == OVERFLOW else found


def _of_tcp(family: int, peer: tuple[Any, ...], ours: tuple[Any, ...]) -> int:
    """Out of /proc/net/tcp (proc_net_tcp(5)): the line whose local end is the peer's. Whoever speaks IPv4 over a socket
    of IPv6 (Java, gRPC) is in the other table."""
    if family == socket.AF_INET6:
        return _in_table("/proc/net/tcp6", family, peer, ours)
    found = _in_table("/proc/net/tcp", family, peer, ours)
    if found != NO_USER:
        return found
    mapped = [(f"::ffff:{host}", port) for host, port in (peer[:2], ours[:2])]
    return _in_table("/proc/net/tcp6", socket.AF_INET6, *mapped)


def _in_table(path: str, family: int, peer: tuple[Any, ...], ours: tuple[Any, ...]) -> int:
    ends = _written(family, peer), _written(family, ours)
    with open(path, encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if (fields[1], fields[2]) == ends and fields[3] == _ESTABLISHED and fields[9] != "0":
                return int(fields[7])
    return NO_USER


def _written(family: int, address: tuple[Any, ...]) -> str:
    """An address and port as the kernel writes them: words in this machine's order of bytes."""
    packed = socket.inet_pton(family, address[0].partition("%")[0])
    order = "<" if sys.byteorder == "little" else ">"
    words = struct.unpack(f"{order}{len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
