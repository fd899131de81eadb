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


# What of the settings of access gRPC can hold.
_KNOWN_TO_RPC = frozenset({"users", "tokens"})


def unfit_for_rpc(listen: str, access: Mapping[str, Any]) -> str:
    """Why gRPC may not be listened for there with those settings of access, or ""."""
    _, _, port = listen.rpartition(":")
    if listen.startswith("unix:") or not port.isdecimal() or not 0 < int(port) < 65536 or not only_here(listen):
        return f"grpc_listen {listen} is not a port of this machine alone, as 127.0.0.1:8501 is"
    unknown = sorted(name for name, value in access.items() if value and name not in _KNOWN_TO_RPC)
    if unknown:
        return f"grpc_listen and access.{unknown[0]} exclude each other: gRPC can hold users and tokens alone"
    return ""
