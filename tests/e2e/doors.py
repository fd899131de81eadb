"""A door on the way to a server: a loopback address that is closed, opened, or stopped inside an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

PIECE = 16 * 1024


class Door:
    """Forwards to `target` ("host:port", may be changed). `closed`: nobody gets in, and who is in is thrown out."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._place = self._listener.getsockname()
        self.address = f"127.0.0.1:{self._place[1]}"
        self._pairs: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._left = -1  # bytes that still pass to the client before the stop; -1: no stop
        self.stopped = threading.Event()
        self._go = threading.Event()
        self._go.set()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def __enter__(self) -> Door:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._go.set()
        self.close()

    def close(self) -> None:
        """Shut it, on everybody's heels: nobody listens there any more."""
        with self._lock:
            self._closed = True
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection; new ones are let in."""
        with self._lock:
            pairs = list(self._pairs)
            self._pairs.clear()
        for one in pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def stop_after(self, count: int) -> None:
        """Let so many bytes pass to clients, then nothing, until `open`."""
        with self._lock:
            self._left = count
            self.stopped.clear()
            self._go.clear()

    def open(self) -> None:
        """Everything passes."""
        with self._lock:
            self._left = -1
            if self._closed:
                self._closed = False
                self._listener = socket.create_server(self._place)
                threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._go.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                host, _, port = self.target.rpartition(":")
                server = socket.create_connection((host, int(port)), timeout=10)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs |= {client, server}
            for one, two, counted in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(one, two, counted), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                if counted:
                    data = self._held(data, sink)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._pairs.discard(source)
        source.close()

    def _held(self, data: bytes, sink: socket.socket) -> bytes:
        with self._lock:
            if self._left < 0:
                return data
            now, later = data[: self._left], data[self._left :]
            self._left -= len(now)
        if now:
            sink.sendall(now)
        if later:
            self.stopped.set()
            self._go.wait()
        return later
