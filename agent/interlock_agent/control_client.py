"""The CLI's end of the control socket: blocking, small, one request a connection."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock_agent.host import messages
from interlock_shared import __version__
from interlock_shared.errors import Invalid, Unreachable, from_wire

_LENGTH = struct.Struct(">I")


def _read(sock: socket.socket) -> dict[str, Any]:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            if not piece:
                raise Unreachable("the agent closed the connection; is it being restarted?")
            data += piece
        return data

    (length,) = _LENGTH.unpack(exactly(4))
    document = json.loads(exactly(length))
    return dict(document)


def _away(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: you may not talk to this agent: use sudo"
    hint = "start it (`systemctl start interlock-agent`), or name its configuration with --config"
    return f"no agent answers at {path}: {hint}"


def ask(
    path: Path,
    op: str,
    *,
    descriptor: int = -1,
    progress: Callable[[dict[str, Any]], None] = lambda document: None,
    **fields: Any,
) -> dict[str, Any]:
    """One request; its answer. Raises what the agent raised, and Unreachable when no agent answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError as away:
            raise Unreachable(_away(path, away), code="agent_away") from None
        try:
            mine = messages.hello(__version__, "tool")
            sock.sendall(messages.encode(mine))
            theirs = _read(sock)
            if "error" in theirs:
                raise from_wire(theirs["error"])
            try:
                messages.agree(mine, theirs)
            except ValueError as none_in_common:
                raise Invalid(str(none_in_common), code="protocol") from None
            frame = messages.encode({"op": op, **fields})
            with contextlib.suppress(BrokenPipeError):  # it closed on us: why, it has said before
                sent = socket.send_fds(sock, [frame], [descriptor]) if descriptor >= 0 else sock.send(frame)
                sock.sendall(frame[sent:])
            while True:
                answer = _read(sock)
                if "progress" in answer:
                    progress(dict(answer["progress"]))
                elif "error" in answer:
                    raise from_wire(answer["error"])
                else:
                    return dict(answer["ok"])
        except (ConnectionError, BrokenPipeError) as broken:
            raise Unreachable(f"the agent went away: {broken}", code="agent_away") from None
