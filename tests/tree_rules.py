"""The rules of the tree, as data: rooms, layers, owners of libraries, sizes. tests/test_tree.py holds them.

A rule that stands in the way is changed here, with its reason, in the commit that needs it.
Paths are relative to the folder of a distribution (`agent/`, …), patterns are fnmatch's (`*` crosses slashes).
"""

from __future__ import annotations

from typing import NamedTuple

# Folder of a distribution → its import package.
DISTRIBUTIONS = {"shared": "interlock_shared", "agent": "interlock_agent", "server": "interlock_server"}

SHARED = "interlock_shared"
AGENT = "interlock_agent"
HOST = "interlock_agent.host"
FETCHER = "interlock_agent.fetcher"
FRONT = "interlock_agent.host.front"
WORKER = "interlock_agent.host.worker"
CLIENT = "interlock_agent.client"
TRUST_CLIENT = "interlock_agent.trust_client"
KEYS = "interlock_agent.keys"
SERVER = "interlock_server"
PUBLISHER = "interlock_server.publisher"

# What passes between two rooms is a small file of messages; each is named here, with nothing but the standard library.
HOST_MESSAGES = "interlock_agent.host.messages"  # agent ↔ host: the control socket
WIRE = "interlock_agent.host.wire"  # host, front, worker: frames over their Unix sockets
PROTOBUF = "interlock_agent.host.protobuf"  # front, worker: how gRPC's messages are written
LIFELINE = "interlock_agent.host.lifeline"  # host, front, worker: a child does not outlive its host
FRONT_MESSAGES = "interlock_agent.host.front.messages"  # host ↔ front
WORKER_MESSAGES = "interlock_agent.host.worker.messages"  # host and front ↔ worker
FETCHER_MESSAGES = "interlock_agent.fetcher.messages"  # agent ↔ fetcher

# Room → what it may import beside itself. The longest prefix says which room a module is in.
ROOMS: dict[str, tuple[str, ...]] = {
    SHARED: (),
    AGENT: (SHARED, KEYS, HOST_MESSAGES, FETCHER_MESSAGES),
    FETCHER: (SHARED, KEYS),
    KEYS: (SHARED,),  # where the device's key is: the agent signs and connects with it, and so does its fetcher
    TRUST_CLIENT: (SHARED, FETCHER),  # a program of its own: what the fetcher believes, driven by hand
    HOST: (SHARED, FRONT_MESSAGES, WORKER_MESSAGES),
    FRONT: (WIRE, LIFELINE, PROTOBUF, WORKER_MESSAGES),
    WORKER: (WIRE, LIFELINE, PROTOBUF),
    CLIENT: (),  # for applications: may be copied
    SERVER: (SHARED,),
    PUBLISHER: (SHARED,),
}

# The one place outside a room's own rules: the CLI on a release engineer's machine drives the publisher. Nothing that
# listens may import it.
MAY_IMPORT_PUBLISHER = ("interlock_server/cli.py", "interlock_server/cli/*")

# An `__init__` imports nothing of ours, since it would drag its room along; a console script's joins its own commands,
# and nothing but the script imports those.
INIT_MAY_IMPORT = ("interlock_agent/cli/__init__.py",)


# The pure halves of the rooms.
PURE_HALVES = (
    *("*/core/*", "*/core.py", "interlock_agent/host/states.py"),
    *(f"interlock_agent/host/{name}.py" for name in ("gaps", "own", "trials")),
)


class Layer(NamedTuple):
    """Files of one layer, and which layers of the same room they may import beside the same file's own folder."""

    name: str
    patterns: tuple[str, ...]
    may: tuple[str, ...]
    own_folder: bool  # whether files of the layer may import each other


# The first row that matches says which layer a file is in; a file that no row matches (config.py, cli/, …) may import
# anything of its room but `__main__`.
LAYERS = (
    Layer(
        "main", ("*/__main__.py",), ("main", "core", "ports", "engine", "adapters", "http", "other"), own_folder=True
    ),
    # What passes between rooms is data: any layer may speak it.
    Layer("messages", ("*/messages.py", "*/wire.py", "*/host/protobuf.py"), (), own_folder=True),
    Layer("core", PURE_HALVES, (), own_folder=True),
    Layer("ports", ("*/ports.py",), ("core",), own_folder=False),
    Layer("engine", ("*/engine.py",), ("core", "ports", "other"), own_folder=False),
    Layer("http", ("*/http/*",), ("core", "ports", "other"), own_folder=True),
    Layer("migrations", ("*/adapters/migrations/*",), (), own_folder=True),
    Layer("adapters", ("*/adapters/*",), ("core", "ports", "other"), own_folder=False),
)
SPOKEN_BY_ALL = "messages"
# A table's migrations belong to the database's adapter; what tells facts about a device, to the hardware's; Triton is
# one of the ways of a hook.
ADAPTER_PAIRS = (
    ("interlock_agent.host.adapters.hooks", "interlock_agent.host.adapters.triton"),
    ("interlock_server.adapters.database", "interlock_server.adapters.migrations"),
    ("interlock_agent.adapters.hardware", "interlock_agent.adapters.telemetry"),
    ("interlock_agent.adapters.telemetry.energy", "interlock_agent.adapters.telemetry.sysfs"),
    ("interlock_agent.adapters.telemetry.jetson", "interlock_agent.adapters.telemetry.sysfs"),
)

# No I/O, no clock, no dice: what these modules do is done in adapters, and handed in.
IMPURE = frozenset(
    """
    asyncio ctypes fcntl fileinput ftplib getpass glob http imaplib io locale logging mmap multiprocessing os platform
    pty queue random readline resource runpy sched secrets select selectors shelve shutil signal smtplib socket
    socketserver sqlite3 ssl subprocess sys syslog tarfile tempfile termios threading time urllib uuid warnings
    webbrowser zipfile
    """.split()
)
# Parts of impure modules that are pure.
PURE_PARTS = {"urllib.parse", "pathlib.PurePath", "pathlib.PurePosixPath"}
IMPURE_CALLS = frozenset({"open", "print", "input", "breakpoint", "now", "utcnow", "today"})

# Files that must be pure, and the exceptions among them.
PURE = ("interlock_shared/*", *PURE_HALVES)
PURE_EXCEPT = {
    "interlock_shared/durable.py": "the one durable-replace helper: shared's only I/O (docs/decisions)",
    "interlock_shared/tasks.py": "how a task is ended, where cancelling it is not enough: no I/O, but it waits",
}

# Library → the files that may import it. A third-party library without a row belongs to nobody: give it a home.
# So does `sqlite3`. An upgrade of a library is then a change of one file.
OWNERS: dict[str, tuple[str, ...]] = {
    "aiohttp": ("interlock_server/http/*", "interlock_server/__main__.py", "interlock_server/publisher/client.py"),
    "aiomqtt": ("interlock_agent/adapters/broker.py", "interlock_server/adapters/broker.py"),
    "alembic": ("interlock_server/adapters/database.py", "interlock_server/adapters/migrations/*"),
    "cryptography": (
        "interlock_shared/trust.py",
        "interlock_agent/adapters/identity.py",
        "interlock_agent/fetcher/credentials.py",
        "interlock_agent/keys/places.py",
        "interlock_server/adapters/device_ca.py",
        "interlock_server/adapters/keys.py",
        "interlock_server/publisher/signers.py",
    ),
    "grpc": ("interlock_agent/host/front/rpc.py",),
    "numpy": ("interlock_agent/client.py", "interlock_agent/host/worker/*", "interlock_server/publisher/*"),
    "onnx": ("interlock_server/publisher/*",),
    "onnxruntime": ("interlock_agent/host/worker/*", "interlock_server/publisher/golden.py"),
    "prometheus_client": ("interlock_server/http/metrics.py",),
    # The language of documents and settings; a core takes finished documents, a worker none.
    "pydantic": (
        "interlock_shared/*",
        "interlock_agent/config.py",
        "interlock_agent/sections.py",
        "interlock_agent/core/gate/command.py",  # what the owner's command says is a document from outside
        "interlock_agent/host/config.py",
        "interlock_server/config.py",
        "interlock_server/http/*",
        "interlock_server/publisher/*",
    ),
    "pynvml": ("interlock_agent/adapters/telemetry/nvml.py",),
    "rich": ("*/cli.py", "*/cli/*", "*/progress.py"),
    "securesystemslib": (
        "interlock_shared/trust.py",
        "interlock_agent/adapters/identity.py",
        "interlock_agent/fetcher/*",
        "interlock_server/adapters/device_ca.py",
        "interlock_server/adapters/keys.py",
        "interlock_server/adapters/tuf_repository.py",
        "interlock_server/publisher/*",
    ),
    "sqlalchemy": ("interlock_server/adapters/database.py", "interlock_server/adapters/migrations/*"),
    "sqlite3": ("interlock_agent/adapters/journal.py",),
    "tensorrt": ("interlock_agent/host/worker/*",),
    "tomli": ("interlock_agent/config.py", "interlock_agent/host/config.py"),
    "tuf": ("interlock_agent/fetcher/*", "interlock_server/adapters/tuf_repository.py", "interlock_server/publisher/*"),
    "typer": ("*/cli.py", "*/cli/*"),
    "urllib3": ("interlock_agent/fetcher/*",),
    "zstandard": ("interlock_server/adapters/blobs.py", "interlock_agent/fetcher/*", "interlock_server/publisher/*"),
}
OWNED_STDLIB = frozenset({"sqlite3"})

# Past 400 lines a file is two things; past 60 a function is.
FILE_LINES = 400
FUNCTION_LINES = 60
# Path (relative to the root) → why it may be longer.
LONG_FILES: dict[str, str] = {"agent/interlock_agent/client.py": "for applications, which copy it as one file"}
# Path:function → why it may be longer.
LONG_FUNCTIONS: dict[str, str] = {}
# A migration is a list of tables, written once and never changed.
NOT_MEASURED = ("server/interlock_server/adapters/migrations/versions/*",)
