"""Settings of an external broker, as text: TLS, the certificate as the identity, who may what, limits.

The same rules as the embedded broker's (core/mqtt_rules.py), in each broker's own words. Comments in what is written
are for the person who reads it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interlock_server.core.mqtt import PACKET_MAX_BYTES, TOPIC_MAX_BYTES
from interlock_server.core.mqtt_rules import SERVER
from interlock_shared import topics

BROKERS = ("mosquitto", "emqx", "nats")
CHAIN, DEVICE_CA, CRL = "broker.pem", "device_ca.pem", "crl.pem"  # files beside the settings
FOLDERS = {"mosquitto": "/etc/mosquitto/interlock", "emqx": "/etc/emqx/interlock", "nats": "/etc/nats/interlock"}
SUBSCRIBED = f"{topics.BLOB_PREFIX}/#"


@dataclass(frozen=True)
class Wanted:
    """What the settings are for: where the files will lie, the address to listen on, and for NATS the devices."""

    folder: str
    listen: str = "0.0.0.0"
    port: int = 8883
    devices: Sequence[str] = ()


def files(broker: str, wanted: Wanted) -> dict[str, str]:
    """{file name: text} for one of BROKERS."""
    return {"mosquitto": mosquitto, "emqx": emqx, "nats": nats}[broker](wanted)


def _heading(sign: str) -> list[str]:
    return [
        f"{sign} Written by `interlock-server broker-config`. Written again by it: your own settings belong elsewhere.",
        f"{sign} Every client shows a certificate of the device CA; its common name is who it is: a device's id, or",
        f"{sign} {SERVER} for the server. Nobody has a password.",
    ]


# --- Mosquitto -------------------------------------------------------------------------------------------------------


def mosquitto(wanted: Wanted) -> dict[str, str]:
    """`interlock.conf` for /etc/mosquitto/conf.d, and its access list. Mosquitto 2.0 or later."""
    lines = [
        *_heading("#"),
        "#",
        "# Debian's own /etc/mosquitto/mosquitto.conf includes conf.d, and says pid_file, persistence and log_dest.",
        "# Where it does not:",
        "#   pid_file /run/mosquitto/mosquitto.pid",
        "#   persistence true",
        "#   persistence_location /var/lib/mosquitto/",
        "",
        f"listener {wanted.port} {wanted.listen}",
        "# The broker's own certificate, by the TLS CA that devices find in the trusted root; key and chain in one.",
        f"certfile {wanted.folder}/{CHAIN}",
        f"keyfile {wanted.folder}/{CHAIN}",
        "tls_version tlsv1.2",
        "",
        "# Who may connect: certificates of the device CA, but those that were revoked. The server keeps the list",
        "# (--mosquitto-crl), has it read again (SIGHUP, --mosquitto-pid) and ends the session of who is on it.",
        f"cafile {wanted.folder}/{DEVICE_CA}",
        "require_certificate true",
        f"crlfile {wanted.folder}/{CRL}",
        "",
        "# The certificate is the identity, and the identity is the client id: no device takes over a neighbour's",
        "# session, and the server can take over that of a revoked device, whatever client id it says.",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        f"acl_file {wanted.folder}/acl",
        "",
        "# No device fills the broker: what is too large or waits too long is dropped, and sent again by its sender.",
        f"message_size_limit {PACKET_MAX_BYTES}",
        "max_inflight_messages 64",
        "max_queued_messages 1000",
        "max_queued_bytes 8388608",
        "max_keepalive 3600",
        "persistent_client_expiration 14d",
        "sys_interval 0",
    ]
    return {"interlock.conf": "\n".join(lines) + "\n", "acl": mosquitto_acl()}


def mosquitto_acl() -> str:
    """Who may what. A pattern is for every user; nobody gets anything that no line gives."""
    own = [("write", kind) for kind in topics.DEVICE_MAY_PUBLISH] + [("read", k) for k in topics.DEVICE_MAY_SUBSCRIBE]
    lines = _heading("#")
    lines += ["# %u is the common name. Wills and retained messages are publications, and need `write` too."]
    lines += [f"pattern {may} {topics.device_topic(kind, '%u')}" for may, kind in own]
    lines += [f"pattern read {topics.NOTICE}", f"pattern read {SUBSCRIBED}"]
    return "\n".join([*lines, "", f"user {SERVER}", f"topic readwrite {topics.PREFIX}/#"]) + "\n"


# --- EMQX ------------------------------------------------------------------------------------------------------------


def emqx(wanted: Wanted) -> dict[str, str]:
    """`interlock.hocon` to be included by emqx.conf, and `acl.conf`. EMQX 5; by its documentation, not run by us."""
    lines = [
        *_heading("#"),
        "# Include it at the end of emqx.conf. Written by the documentation of EMQX 5.",
        "",
        "listeners.tcp.default.enable = false",
        "listeners.ws.default.enable = false",
        "listeners.wss.default.enable = false",
        "listeners.ssl.default {",
        f'  bind = "{wanted.listen}:{wanted.port}"',
        "  ssl_options {",
        f'    certfile = "{wanted.folder}/{CHAIN}"',
        f'    keyfile = "{wanted.folder}/{CHAIN}"',
        f'    cacertfile = "{wanted.folder}/{DEVICE_CA}"',
        "    verify = verify_peer",
        "    fail_if_no_peer_cert = true",
        '    versions = ["tlsv1.3", "tlsv1.2"]',
        "    # EMQX fetches revocation lists from the address that a certificate names, and ours name none: a revoked",
        "    # device is banned instead (see docs/reference/brokers.md).",
        "    enable_crl_check = false",
        "  }",
        "}",
        "",
        "# The certificate is the identity, and the client id: no device takes over another one's session.",
        "mqtt {",
        "  peer_cert_as_username = cn",
        "  peer_cert_as_clientid = cn",
        f"  max_packet_size = {PACKET_MAX_BYTES}",
        f"  max_topic_levels = {topics.BLOB_PREFIX.count('/') + 5}",
        "  max_qos_allowed = 1",
        "  shared_subscription = true",
        "  max_inflight = 64",
        "  max_mqueue_len = 1000",
        "}",
        "",
        "# TLS has said who it is; there is no other authentication, and what no line allows is denied and cut.",
        "authentication = []",
        "authorization {",
        "  no_match = deny",
        "  deny_action = ignore",
        "  sources = [",
        f'    {{ type = file, enable = true, path = "{wanted.folder}/acl.conf" }}',
        "  ]",
        "}",
    ]
    return {"interlock.hocon": "\n".join(lines) + "\n", "acl.conf": emqx_acl()}


def emqx_acl() -> str:
    """Erlang terms, the first that matches decides; `eq` keeps a wildcard in a filter from matching."""

    def own(kinds: Sequence[str]) -> str:
        return ", ".join(f'"{topics.device_topic(kind, "${username}")}"' for kind in kinds)

    heard = f'{own(topics.DEVICE_MAY_SUBSCRIBE)}, "{topics.NOTICE}", "{SUBSCRIBED}"'
    lines = [
        *_heading("%%"),
        f'{{allow, {{username, "{SERVER}"}}, all, ["{topics.PREFIX}/#"]}}.',
        f"{{allow, all, publish, [{own(topics.DEVICE_MAY_PUBLISH)}]}}.",
        f"{{allow, all, subscribe, [{heard}]}}.",
        "{deny, all}.",
    ]
    return "\n".join(lines) + "\n"


# --- NATS ------------------------------------------------------------------------------------------------------------


def nats(wanted: Wanted) -> dict[str, str]:
    """`interlock.conf` for nats-server (2.10 where ids have dots): one user a device, since it knows no patterns."""
    head = [
        *_heading("#"),
        "# NATS knows its users by name: write this again, and `nats-server --signal reload`, when a device was",
        "# enrolled or revoked. A user who is gone with a reload is disconnected at once.",
        "",
        "server_name: interlock",
        'listen: "127.0.0.1:4222"',
        f"max_payload: {PACKET_MAX_BYTES}",
        f"max_control_line: {TOPIC_MAX_BYTES * 16}",
        "# MQTT keeps sessions, retained and unacknowledged messages in JetStream.",
        'jetstream { store_dir: "/var/lib/nats/interlock" }',
        "mqtt {",
        f'  listen: "{wanted.listen}:{wanted.port}"',
        "  max_ack_pending: 64",
        "  tls {",
        f'    cert_file: "{wanted.folder}/{CHAIN}"',
        f'    key_file: "{wanted.folder}/{CHAIN}"',
        f'    ca_file: "{wanted.folder}/{DEVICE_CA}"',
        "    verify_and_map: true  # the certificate's subject is the user",
        "    timeout: 10",
        "  }",
        "}",
        "authorization {",
        "  users: [",
    ]
    users = [_nats_user(SERVER, [f"{topics.PREFIX}/#"], [f"{topics.PREFIX}/#"])]
    for device in wanted.devices:
        heard = [topics.device_topic(kind, device) for kind in topics.DEVICE_MAY_SUBSCRIBE]
        said = [topics.device_topic(kind, device) for kind in topics.DEVICE_MAY_PUBLISH]
        users.append(_nats_user(device, said, [*heard, topics.NOTICE, SUBSCRIBED]))
    return {"interlock.conf": "\n".join([*head, *users, "  ]", "}"]) + "\n"}


def _nats_user(name: str, said: Sequence[str], heard: Sequence[str]) -> str:
    publish = ", ".join(f'"{one}"' for topic in said for one in subjects(topic))
    # QoS 1 is delivered from JetStream, to a subject of the session's own.
    subscribe = ", ".join([f'"{one}"' for topic in heard for one in subjects(topic)] + ['"$MQTT.sub.>"'])
    return (
        f'    {{ user: "CN={name}", permissions: {{ publish: {{ allow: [{publish}] }},'
        f" subscribe: {{ allow: [{subscribe}] }} }} }}"
    )


def subjects(topic: str) -> list[str]:
    """A topic as NATS has it: levels are parted by dots, a dot inside one is two slashes, and `#`, which is the level
    above it too, is two subjects.
    """
    parts = [one.replace(".", "//") for one in topic.split("/")]
    found = ".".join({"#": ">", "+": "*"}.get(one, one) for one in parts)
    return [found.removesuffix(".>"), found] if parts[-1] == "#" else [found]
