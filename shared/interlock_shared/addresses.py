"""Addresses that a program listens on, as an owner writes them: `HOST:PORT` or `unix:/path`."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any


def only_here(listen: str) -> bool:
    """Whether nobody but this machine can connect to it: `unix:/path`, or a port of a loopback address."""
    host = listen.rpartition(":")[0].strip("[]")
    if listen.startswith("unix:") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def unprotected(listen: str, access: Mapping[str, Any]) -> str:
    """Why the address may not be listened on with those settings of access, or ""."""
    if only_here(listen) or (access.get("certificate") and (access.get("tokens") or access.get("client_ca"))):
        return ""
    return (
        f"listen {listen} is open to other machines: set access.certificate and access.key, and access.tokens or "
        "access.client_ca; or listen on 127.0.0.1 or unix:/path"
    )
