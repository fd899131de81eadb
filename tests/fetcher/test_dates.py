"""By what the dates of a server's certificate are judged."""

from __future__ import annotations

import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.fetcher import credentials
from interlock_agent.fetcher.http import Server
from interlock_server.adapters.device_ca import DeviceCA
from interlock_shared.errors import Unreachable


def test_dates_are_judged_by_the_floor_alone(tmp_path: Path) -> None:
    then = datetime.now(UTC) - timedelta(days=400)
    old = DeviceCA.open(tmp_path / "ca", lambda: then)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*old.server_files(["127.0.0.1"]))  # it expired long ago
    authority = credentials.context(old.tls_ca.decode(), None)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            data = json.dumps({"a": 1}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"https://127.0.0.1:{server.server_address[1]}"
        known = Server(url, authority, floor=(then + timedelta(days=10)).timestamp())
        assert known.get("/", 100) == b'{"a": 1}'  # a device without a clock gets through
        known.close()
        late = Server(url, authority, floor=datetime.now(UTC).timestamp())
        with pytest.raises(Unreachable) as refused:
            late.get("/", 100)
        assert refused.value.code == "unknown_server"
        server.shutdown()
        thread.join()
