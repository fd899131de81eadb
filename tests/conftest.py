"""What every test has: the guards, folders of its own, free ports.

The rules (blocking calls, foreign sockets, allowed exceptions) are in tests/guard.py; warnings are errors by pytest's
settings in pyproject.toml.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from interlock_agent.host.front.peers import OVERFLOW
from tests import guard

guard.install()
# How long an example takes is the machine's business, and a busy one's is no failure.
hypothesis.settings.register_profile("interlock", deadline=None)
hypothesis.settings.load_profile("interlock")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip aloud what asks the kernel who somebody is, where it does not say."""
    if os.geteuid() == OVERFLOW and item.get_closest_marker("known_user"):
        pytest.skip("RUN BY NOBODY: the kernel calls everybody so whom it does not know; run the tests as another user")


@pytest.fixture(autouse=True)
def _guards() -> Iterator[None]:
    """Fail a test in which a guard spoke, even when somebody swallowed its exception."""
    guard.violations.clear()
    yield
    seen = list(guard.violations)
    guard.violations.clear()
    if seen:
        pytest.fail("\n".join(seen), pytrace=False)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path has 107 bytes at most, and pytest's folders are longer."""
    with tempfile.TemporaryDirectory(prefix="il-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def guarded_environment() -> Callable[..., dict[str, str]]:
    """The environment for processes that a test starts: the guards and strict warnings in them."""
    return guard.guarded_environment


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """Gives loopback ports that nobody has, a different one each call.

    Each stays bound, not listening, until the test ends, with SO_REUSEADDR: others who ask for any port do not get it,
    and a server that sets SO_REUSEADDR, as asyncio's do, can listen on it.
    """
    with ExitStack() as stack:

        def take() -> int:
            held = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            return int(held.getsockname()[1])

        yield take
