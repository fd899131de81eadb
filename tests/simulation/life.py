"""A process that may be killed or stand still: its tasks, and whether it may still touch anything."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from interlock_shared.errors import Later

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class Killed(BaseException):
    """The process is dead: nothing it still thinks of doing is done."""


class Life:
    """One life of agent or host."""

    kind = "?"

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine, self.name = machine, f"{self.kind}-{number}"
        self.alive = True
        self.ready = False
        self.thaw = 0.0
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.context = contextvars.copy_context()
        self.context.run(LIFE.set, self)
        self.crashes: list[BaseException] = []

    @staticmethod
    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
        """Every task belongs to the life in whose context it was made."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
        context = more.get("context")
        life = context.get(LIFE) if context is not None else LIFE.get()
        if life is not None:
            life.tasks[task] = None
            task.add_done_callback(life.over)
            if not life.alive:
                task.cancel()
        return task

    def over(self, task: asyncio.Task[Any]) -> None:
        """A task has ended; a unit's runner that failed is a fault of its own."""
        self.tasks.pop(task, None)
        if task.cancelled() or not self.alive:
            return
        error = task.exception()
        if isinstance(error, Later) and task.get_name() == f"life {self.name}":
            self.machine.strike(self.kind, f"a {self.kind} that ended by itself: {error.message}")
        elif error is not None and task.get_name().startswith(("unit ", "settle ", "life ")):
            self.machine.truth.note(f"{self.name}: {task.get_name()} died of {error!r}")

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """A task of this process."""
        return self.machine.loop.create_task(work, name=name or None, context=self.context)

    def check(self) -> None:
        """Raises Killed when the process is dead."""
        if not self.alive:
            raise Killed(self.name)

    def frozen(self) -> bool:
        """Whether it stands still (SIGSTOP)."""
        return self.machine.loop.virtual < self.thaw

    def freeze(self, seconds: float) -> None:
        """Stand still."""
        self.thaw = self.machine.loop.virtual + seconds

    async def thawed(self) -> None:
        """Wait until it goes on."""
        while self.frozen():  # noqa: ASYNC110 - it may be stopped again meanwhile
            await asyncio.sleep(max(self.thaw - self.machine.loop.virtual, 0.001))

    async def point(self, label: str) -> None:
        """For the fakes of this process."""
        await self.machine.point(self, label)

    def kill(self) -> None:
        """SIGKILL."""
        if not self.alive:
            return
        self.alive = False
        current = asyncio.current_task() if self.machine.loop.is_running() else None
        for task in list(self.tasks):
            if task is not current:
                task.cancel()
        self.died()

    def died(self) -> None:
        """Whoever was connected notices."""

    def begin(self) -> None:
        """Start."""
        self.spawn(self.main(), name=f"life {self.name}")

    async def main(self) -> None:
        """The process."""
        raise NotImplementedError
