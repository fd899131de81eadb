"""Who stands where the update server is, with the server's own certificate: passes on what he likes, and as he likes.

It is the stolen server to devices, and the stolen blob store: all that the real one answers can be replaced, bent,
cut short, made endless or slow.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

PIECE = 64 * 1024
ENDLESS_MAX = 1 << 32  # beyond every limit: a test that lets it come so far has failed

PASSED = ("Range", "If-Range", "Content-Type", "Accept")

Bend = Callable[[bytes], bytes]


class Answers(http.server.BaseHTTPRequestHandler):
    """One connection of a device."""

    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        """Replaced, bent, or as it is."""
        impostor, path = self.server.impostor, self.path.partition("?")[0]
        impostor.asked.append(path)
        how = next((how for pattern, how in impostor.behaves if re.fullmatch(pattern, path)), None)
        if how is not None:
            self.close_connection = True
            how(self)
            return
        if path in impostor.own:
            self.reply(200, {"Content-Type": "application/json"}, impostor.own[path]())
            return
        if path in impostor.instead:
            self.reply(200, {}, impostor.instead[path])
            return
        status, headers, body = impostor.real(self.path, dict(self.headers), None)
        for pattern, bend in impostor.bends:
            if status < 300 and re.fullmatch(pattern, path):
                body = bend(body)
        self.reply(status, headers, body)

    def do_POST(self) -> None:
        """Passed on."""
        self.server.impostor.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.reply(*self.server.impostor.real(self.path, dict(self.headers), body))

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    impostor: Impostor

    def handle_error(self, request: object, client_address: object) -> None:
        """A device that hangs up is what is wanted."""


class Impostor:
    """`own`: path → what he has to say himself, always; `instead`: path → body; `bends`: (pattern of paths, what is
    done to the real body); `behaves`: (pattern, what answers in its own way). `asked`: every path, in order."""

    def __init__(self, url: str, token: str, certificate: Path, authority: Path) -> None:
        self._url, self._token = url, token
        self._trust = ssl.create_default_context(cafile=str(authority))
        self.own: dict[str, Callable[[], bytes]] = {}
        self.instead: dict[str, bytes] = {}
        self.behaves: list[tuple[str, Callable[[Answers], None]]] = []
        self.bends: list[tuple[str, Bend]] = []
        self.asked: list[str] = []
        self._listener = _Listener(("127.0.0.1", 0), Answers)
        self._listener.impostor = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # The handshake in the thread of its connection: a client that does not shake hands holds nobody else.
        self._listener.socket = context.wrap_socket(
            self._listener.socket, server_side=True, do_handshake_on_connect=False
        )
        self.address = f"127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    @contextlib.contextmanager
    def honest_again(self) -> Iterator[None]:
        """What was changed in the block is over after it."""
        try:
            yield
        finally:
            self.instead.clear()
            self.behaves.clear()
            self.bends.clear()

    def real(self, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, dict[str, str], bytes]:
        """What the real server answers, asked as one of its people: the device's key is on the device."""
        passed = {name: value for name, value in headers.items() if name in PASSED}
        passed["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url + path, body, passed)
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._trust) as answer:
                return answer.status, _kept(answer.headers), answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, _kept(refused.headers), refused.read()


def _kept(headers: object) -> dict[str, str]:
    dropped = {"content-length", "transfer-encoding", "connection", "date", "server", "keep-alive"}
    return {name: value for name, value in headers.items() if name.lower() not in dropped}  # type: ignore[attr-defined]


# --- ways to behave --------------------------------------------------------------------------------------------------


def endless(answers: Answers) -> None:
    """Bytes without an end."""
    answers.send_response(200)
    answers.send_header("Content-Length", str(ENDLESS_MAX))
    answers.end_headers()
    for _ in range(ENDLESS_MAX // PIECE):
        answers.wfile.write(bytes(PIECE))


def missing(answers: Answers) -> None:
    """As if it were not there."""
    answers.reply(404, {}, b"")


def crumbs(answers: Answers) -> None:
    """A byte now and then, for as long as somebody listens."""
    answers.send_response(200)
    answers.send_header("Content-Length", str(ENDLESS_MAX))
    answers.end_headers()
    silence = threading.Event()
    while not silence.wait(0.05):
        answers.wfile.write(b"{")
        answers.wfile.flush()


def flipped(data: bytes) -> bytes:
    """One bit of a body, in its middle, is another one."""
    middle = len(data) // 2
    return data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1 :]


def truncated(data: bytes) -> bytes:
    """The first half, as if it were all."""
    return data[: len(data) // 2]
