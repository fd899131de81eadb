"""The sockets that applications connect to: a loopback port or a Unix socket for each unit.

Rules of the file:
- Where the service manager has kept the unit's socket it is taken: clients that came meanwhile wait in it.
- A new one is given to the manager before the first client can come.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from interlock_agent.host.manager import Kept

BACKLOG = 1024


class Listeners:
    """Opens them. Everything blocks."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def open(self, unit: str, listen: str) -> tuple[socket.socket, str]:
        """The socket, and the address that clients use. Raises OSError, ValueError."""
        kept = self._kept.take(unit, listen)
        if kept is not None:
            return kept, listen
        listener, address = open_listener(listen)
        self._kept.keep(unit, listener)
        return listener, address


def open_listener(listen: str) -> tuple[socket.socket, str]:
    """A listening socket for `HOST:PORT` (loopback unless the owner says otherwise) or `unix:/path`, and the address
    that clients use. Blocks. Raises OSError, ValueError for what is neither."""
    if listen.startswith("unix:"):
        path = listen[5:]
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            unix.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - as open as a loopback port is
            unix.listen(BACKLOG)
        except BaseException:
            unix.close()
            raise
        return unix, listen
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"listen {listen!r} is neither HOST:PORT nor unix:/path")
    bare = host.strip("[]")
    tcp = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET, socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((bare, int(port)))
        tcp.listen(BACKLOG)
    except BaseException:
        tcp.close()
        raise
    return tcp, f"{host}:{tcp.getsockname()[1]}"
