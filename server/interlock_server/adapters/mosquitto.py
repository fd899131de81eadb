"""An external Mosquitto: its password file and its access list are kept by this server.

- A device's line is written when it enrols, before that is answered; then Mosquitto is told to read again (SIGHUP).
- Only hashes are written, in Mosquitto's own form `$7$`: PBKDF2-SHA512 (mosquitto_passwd(1), password_mosq.c).
- The access list is the same for every fleet: a device reads and writes its own topics, the server all of them.
- Lines of other users stay. Owner, group and mode of the files stay too: Mosquitto has to be able to read them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import secrets
import signal
from pathlib import Path

from interlock_shared import durable, topics
from interlock_shared.errors import Invalid

log = logging.getLogger(__name__)

ITERATIONS = 101  # Mosquitto's own default; what is hashed is 32 random bytes, which nobody guesses
SALT_BYTES = 12
MODE = 0o640  # of a file that was not there: its group should be Mosquitto's


def hashed(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """A password as Mosquitto's file has it."""
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def holds(line: str, password: str) -> bool:
    """Whether a hash is this password's."""
    try:
        _, form, iterations, salt, _ = line.split("$")
        again = hashed(password, base64.b64decode(salt), int(iterations))
    except ValueError:
        return False
    return form == "7" and secrets.compare_digest(line, again)


def access_list(server: str) -> str:
    """Who may what. A pattern without %u is for every user; nobody else gets anything."""
    own = [("write", kind) for kind in topics.DEVICE_MAY_PUBLISH] + [("read", k) for k in topics.DEVICE_MAY_SUBSCRIBE]
    lines = ["# Written by interlock-server; your own rules go below the last line of this block."]
    lines += [f"pattern {may} {topics.device_topic(kind, '%u')}" for may, kind in own]
    lines += [f"pattern read {topics.NOTICE}", f"user {server}", f"topic readwrite {topics.PREFIX}/#"]
    return "\n".join(lines) + "\n"


class Mosquitto:
    """`start` once, then `joined` for each device. Raises Invalid, OSError."""

    def __init__(self, passwords: Path, acl: Path, pid: Path | None) -> None:
        self._passwords, self._acl, self._pid = passwords, acl, pid
        self._lock = asyncio.Lock()

    async def start(self, username: str | None, password: str | None) -> None:
        """The access list, and the server's own line."""
        if not username or not password:
            raise Invalid("--mosquitto-passwd needs --broker mqtt://USER:PASSWORD@HOST", field="--broker")
        rules = access_list(username)

        def work() -> bool:
            changed = self._set(username, password)
            if not _read(self._acl).startswith(rules):
                _write(self._acl, rules)
                changed = True
            return changed

        async with self._lock:
            if await asyncio.to_thread(work):
                await asyncio.to_thread(self._reload)

    async def joined(self, device: str, password: str) -> None:
        """The device may connect with this password, and with no other."""
        async with self._lock:
            if await asyncio.to_thread(self._set, device, password):
                await asyncio.to_thread(self._reload)

    def _set(self, user: str, password: str) -> bool:
        lines = _read(self._passwords).splitlines()
        mine = [line for line in lines if line.partition(":")[0] == user]
        if len(mine) == 1 and holds(mine[0].partition(":")[2], password):
            return False
        lines = [line for line in lines if line and line not in mine]
        lines.append(f"{user}:{hashed(password, secrets.token_bytes(SALT_BYTES))}")
        _write(self._passwords, "\n".join(lines) + "\n")
        return True

    def _reload(self) -> None:
        if self._pid is None:
            return
        try:
            os.kill(int(self._pid.read_text()), signal.SIGHUP)
        except (OSError, ValueError) as bad:
            log.warning("Mosquitto was not told to read its files again (%s): %s", self._pid, bad)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    try:
        before = path.stat()
    except FileNotFoundError:
        durable.replace_file(path, text.encode(), mode=MODE)
        return
    durable.replace_file(path, text.encode(), mode=before.st_mode & 0o777)
    with contextlib.suppress(PermissionError):  # an ordinary user: the folder's group must do
        os.chown(path, before.st_uid, before.st_gid)
