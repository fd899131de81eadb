"""Looking at the application beside a model, and at a model's own address: processes, HTTP, systemd.

What is run stands in the owner's configuration alone. A command gets a clean environment and a session of its own; it
ends with the agent, and is killed with all that it has started when its time is over. HTTP is asked by hand: a status
line is all that is looked at, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from interlock_agent.processes import ends_with_us
from interlock_shared.errors import Refused

WORDS_BYTES = 500  # of what a probe said that failed
LINE_BYTES = 4096  # of an answer's first line
LISTEN_S = 1.0  # for the last words of a command that has ended
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
SYSTEMCTL = ("systemctl", "--no-ask-password", "is-active")
NOT_FOR_US = (401, 403, 407)


class OwnersProbes:
    """The Probes port."""

    async def exec(self, command: Sequence[str], facts: Mapping[str, str]) -> str:
        """Well where it exits with 0."""
        environment = {**ENVIRONMENT, **{f"INTERLOCK_{name}": value for name, value in facts.items()}}
        # A pipe of our own: asyncio takes a process whose child holds its pipe for one that has not ended.
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                cwd="/",
                env=environment,
                start_new_session=True,
                preexec_fn=ends_with_us(signal.SIGKILL),
            )
        except OSError as bad:
            os.close(ours)
            return f"{command[0]}: {bad.strerror}"
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        said = bytearray()
        listening = asyncio.ensure_future(_listen(ours, said))
        try:
            code = await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has left behind, too
            await asyncio.wait([listening], timeout=LISTEN_S)
            listening.cancel()
            await process.wait()  # where its time was over: it was killed just now
        if code == 0:
            return ""
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        return f"{how}: {said.decode(errors='replace').strip() or 'it said nothing'}"

    async def systemd(self, unit: str) -> str:
        """Well where it is active."""
        return await self.exec([*SYSTEMCTL, unit], {})

    async def http(self, url: str) -> str:
        """Well is 200 to 399."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            secure = ssl.create_default_context() if parts.scheme == "https" else None
            streams = await asyncio.open_connection(parts.hostname, port, ssl=secure)
            status = await _get(*streams, parts.netloc.rpartition("@")[2], path)
        except (OSError, ValueError, asyncio.IncompleteReadError) as failed:
            return str(failed) or type(failed).__name__
        return "" if 200 <= status < 400 else f"HTTP {status}"

    async def ready(self, address: str, model: str) -> str:
        """Well is 200. Raises Refused where the owner lets others ask."""
        try:
            if address.startswith("unix:"):
                streams = await asyncio.open_unix_connection(address[5:])
            else:
                host, _, port = address.rpartition(":")
                streams = await asyncio.open_connection(host.strip("[]"), int(port))
            status = await _get(*streams, "localhost", f"/v2/models/{model}/ready")
        except (OSError, ValueError, asyncio.IncompleteReadError) as failed:
            return str(failed) or type(failed).__name__
        if status in NOT_FOR_US:
            raise Refused(f"HTTP {status}: the agent may not ask", code="forbidden")
        return "" if status == 200 else f"HTTP {status}"


async def _listen(descriptor: int, said: bytearray) -> None:
    """The end of what comes out of a pipe, which is closed."""
    reader, pipe = asyncio.StreamReader(limit=4096), os.fdopen(descriptor, "rb", buffering=0)
    try:
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        while part := await reader.read(4096):
            said.extend(part)
            del said[:-WORDS_BYTES]
    finally:
        pipe.close()


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, path: str) -> int:
    """The status of an answer. Raises OSError, ValueError, IncompleteReadError."""
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: interlock-agent\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("ascii", "strict"))
        await writer.drain()
        line = await reader.readuntil(b"\n")
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/") or len(line) > LINE_BYTES:
            raise ValueError("it does not speak HTTP")
        return int(rest[:3])
    except asyncio.LimitOverrunError:
        raise ValueError("it does not speak HTTP") from None
    finally:
        writer.close()
