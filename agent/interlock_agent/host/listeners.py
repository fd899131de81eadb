"""The sockets that applications connect to: a loopback port or a Unix socket for each unit.

Rules of the file:
- Where the service manager has kept the unit's socket it is taken: clients that came meanwhile wait in it.
- A new one is given to the manager before the first client can come.
"""

from __future__ import annotations

import contextlib
import grp
import importlib.util
import os
import socket
import stat
from collections.abc import Mapping
from typing import Any

from interlock_agent.host.manager import Kept
from interlock_shared.addresses import unfit_for_rpc, unprotected

BACKLOG = 1024
_ANYBODY: Mapping[str, Any] = {}


class Listeners:
    """Opens them. Everything blocks."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def open(self, unit: str, listen: str, access: Mapping[str, Any]) -> tuple[socket.socket, str]:
        """The socket, and the address that clients use. Raises OSError, ValueError."""
        check(listen, access)
        kept = self._kept.take(unit, listen)
        if kept is not None:
            limit_file(kept, access)
            return kept, listen
        listener, address = open_listener(listen, access)
        self._kept.keep(unit, listener)
        return listener, address

    def close(self, unit: str, listener: socket.socket) -> None:
        """Nobody listens on it any more, nor will after a restart; one that is closed already is no error."""
        if listener.fileno() < 0:
            return
        self._kept.drop(unit, listener)
        if listener.family == socket.AF_UNIX:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(listener.getsockname())
        listener.close()


def check(listen: str, access: Mapping[str, Any]) -> None:
    """Raises ValueError for an address of other machines that anybody could ask."""
    wrong = unprotected(listen, access)
    if wrong:
        raise ValueError(wrong)


def limit_file(listener: socket.socket, access: Mapping[str, Any]) -> None:
    """Mode and group of a Unix socket's file. Blocks. Raises OSError, ValueError."""
    if listener.family != socket.AF_UNIX:
        return
    path = listener.getsockname()
    group = access.get("socket_group")
    if group is not None:
        try:
            os.chown(path, -1, group if isinstance(group, int) else grp.getgrnam(group).gr_gid)
        except KeyError:
            raise ValueError(f"access.socket_group: no group {group!r} on this machine") from None
    os.chmod(path, int(str(access.get("socket_mode") or "0666"), 8))  # as open as a loopback port is


def open_listener(listen: str, access: Mapping[str, Any] = _ANYBODY) -> tuple[socket.socket, str]:
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
            limit_file(unix, access)
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


def check_rpc(listen: str, access: Mapping[str, Any], free: bool = True) -> None:
    """Whether a front can take gRPC there; `free`: nobody has the port yet, ourselves included. The front binds it
    itself: the library takes no socket of others. Blocks. Raises OSError, ValueError."""
    wrong = unfit_for_rpc(listen, access)
    if wrong:
        raise ValueError(wrong)
    if importlib.util.find_spec("grpc") is None:
        raise ValueError("grpc_listen needs the library grpcio: pip install 'interlock-agent[grpc]'")
    if free:
        open_listener(listen)[0].close()
