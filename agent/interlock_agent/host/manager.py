"""The service manager: what it is told (sd_notify(3)), and descriptors that it keeps while this program restarts
(`FileDescriptorStoreMax=`, sd_listen_fds(3)).

Rules of the file:
- Without a manager everything does nothing, and is no error.
- A descriptor that comes back is what it is taken for (address, listening), or it is closed and forgotten there too.
- A socket's file may have been replaced meanwhile: the name under which it is kept says which file it was.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
from collections.abc import MutableMapping

FIRST = 3  # the first descriptor that is handed over
PREFIX = "interlock-listen-"


def notify(text: str, descriptors: tuple[int, ...] = ()) -> None:
    """Tell the manager, when there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    given = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.sendmsg([text.encode()], given, 0, "\0" + address[1:] if address.startswith("@") else address)


def _name(unit: str, listener: socket.socket) -> str:
    """Of a unit's socket in the store: with the file's number, for one in a folder."""
    file = ""
    if listener.family == socket.AF_UNIX:
        found = os.stat(listener.getsockname())
        file = f"{found.st_dev}-{found.st_ino}"
    return f"{PREFIX}{unit}/{file}"


def _unit(name: str) -> str:
    return name[len(PREFIX) :].partition("/")[0] if name.startswith(PREFIX) else ""


def _listens(name: str, kept: socket.socket, unit: str, address: str) -> bool:
    try:
        listens = kept.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        return listens and _address(kept) == _wanted(address) and name == _name(unit, kept)
    except (OSError, ValueError):
        return False


class Kept:
    """Listening sockets that the manager has kept since this program's predecessor. Taken from the environment once:
    children must not take them for theirs."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
        names = environment.pop("LISTEN_FDNAMES", "").split(":")
        self._sockets: list[tuple[str, socket.socket]] = []
        if not count.isdigit() or pid != str(os.getpid()):
            return
        for place in range(int(count)):
            name = names[place] if place < len(names) else ""
            with contextlib.suppress(OSError):
                fcntl.fcntl(FIRST + place, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
                try:
                    kept = socket.socket(fileno=FIRST + place)
                except OSError:  # no socket at all
                    os.close(FIRST + place)
                    self._remove(name)
                else:
                    self._sockets.append((name, kept))

    def take(self, unit: str, address: str) -> socket.socket | None:
        """The unit's socket when it listens on that address still (`HOST:PORT` or `unix:/path`), else None; another one
        of the unit is closed: it could hold the port. Blocks."""
        found, mine = None, [(name, kept) for name, kept in self._sockets if _unit(name) == unit]
        for name, kept in mine:
            self._sockets.remove((name, kept))
            if found is None and _listens(name, kept, unit, address):
                found = kept
            else:
                self._close(name, kept)
        if found is not None and len(mine) > 1:  # what has the same name was removed with it
            self.keep(unit, found)
        return found

    def forget(self) -> None:
        """Close what nobody took: it would let clients wait for nobody."""
        for name, kept in self._sockets:
            self._close(name, kept)
        self._sockets.clear()

    def _close(self, name: str, kept: socket.socket) -> None:
        kept.close()
        self._remove(name)

    @staticmethod
    def _remove(name: str) -> None:
        if name:
            notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def drop(self, unit: str, listener: socket.socket) -> None:
        """The manager keeps it no longer."""
        with contextlib.suppress(FileNotFoundError):  # its file is gone: under that name it will not be taken again
            self._remove(_name(unit, listener))

    @staticmethod
    def keep(unit: str, listener: socket.socket) -> None:
        """Ask the manager to keep it. It knows one that it has already."""
        name = _name(unit, listener)
        notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", (listener.fileno(),))


def _address(kept: socket.socket) -> tuple[str, str]:
    if kept.type != socket.SOCK_STREAM:
        return "", ""
    if kept.family == socket.AF_UNIX:
        return "unix", os.fsdecode(kept.getsockname())
    host, port = kept.getsockname()[:2]
    return str(host), str(port)


def _wanted(address: str) -> tuple[str, str]:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return "unix", rest
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.getaddrinfo(host.strip("[]"), int(port), family, socket.SOCK_STREAM)
    return str(found[0][4][0]), port
