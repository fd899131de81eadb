"""Worker processes: started by exec of the configured Python, asked over their control stream.

Rules of the file:
- The foreign Python sees our package through a folder that holds nothing else (one link), so that none of our other
  dependencies, built for another Python, can be picked up by it.
- Every question has a hard deadline; a worker that misses it is killed (`worker_hung`).
- After `start` has returned, the end of the process is reported once.
- What is measured is bound in its memory (`bounds.py`); what ends for want of it is `out_of_memory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from interlock_agent.host import niceness
from interlock_agent.host.bounds import Bounds, out_of_memory
from interlock_agent.host.cgroups import Groups
from interlock_agent.host.children import Child, child_environment
from interlock_agent.host.messages import Evaluation, Loaded, Looked, Probe, Samples, from_fields
from interlock_agent.host.ports import WorkerError

log = logging.getLogger("interlock.host")

LOAD_TIMEOUT_S = 120.0  # default; an engine that is built takes the owner's `load_timeout_s`
DEFAULT_THREADS = 1
LINES_TOLD = 5  # of what a worker said last


class ProcessWorkers:
    """`ports.Workers` as processes."""

    def __init__(
        self,
        run: Path,
        packages: Path,
        died: Callable[[str, str], Awaitable[None]],
        python: str = "",
        concurrency: int = 2,
        groups: Groups | None = None,
    ) -> None:
        self._sockets, self._records, self._packages = run / "workers", run / "children", packages
        self._died = died
        self._python, self._concurrency = python or sys.executable, concurrency
        self._groups = groups
        self._bounds: dict[str, Bounds] = {}
        self._children: dict[str, Child] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._nice: dict[str, int] = {}
        self._unwanted: set[str] = set()
        self._why: dict[str, str] = {}  # it was killed
        self._takes: dict[str, int] = {}  # requests at once, where it is not as many as others

    def upstream(self, worker: str) -> tuple[str, int]:
        """Where the front finds it, and how many requests it takes at once."""
        # A Unix socket's path has 107 bytes at most, and unit names are long: a digest, not the name.
        name = hashlib.sha256(worker.encode()).hexdigest()[:16]
        return str(self._sockets / f"{name}.sock"), self._takes.get(worker, self._concurrency)

    async def start(
        self,
        worker: str,
        unit: str,
        folder: str,
        generation: int,
        options: dict[str, Any],
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> Loaded:
        """Start and load. Raises WorkerError; then no process is left."""
        python = str(options.get("worker_python") or self._python)
        threads = str(max(1, int(options.get("threads") or DEFAULT_THREADS)))
        environment = child_environment(self._packages)
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
            environment[name] = threads
        command = [python, "-m", "interlock_agent.host.worker", "{control}", "{parent}"]
        bounds = await asyncio.to_thread(Bounds.make, self._groups, worker, options)
        began = time.monotonic()
        try:
            child = await Child.start(
                command, self._records, environment, on_line=lambda line: log.info("worker=%s stderr=%r", worker, line)
            )
        except OSError as failure:
            await asyncio.to_thread(bounds.release)
            raise WorkerError("load_failed", f"{python}: {failure}") from None
        self._children[worker], self._bounds[worker] = child, bounds
        self._asking[worker] = asyncio.Lock()
        self._takes[worker] = _at_once(options, self._concurrency)
        await asyncio.to_thread(bounds.bind, child.pid)
        await self._be_nice(worker, max(0, int(options.get("nice") or 0)))
        bound = {"memory_limit_bytes": bounds.owner, "memory_now_bytes": bounds.own}
        options = {**options, **bound, "hold": room is not None}
        fields = {"worker": worker, "folder": folder, "generation": generation, "options": options}
        child.send({"load": {**fields, "socket": self.upstream(worker)[0]}})
        try:
            timeout_s = float(options.get("load_timeout_s") or LOAD_TIMEOUT_S)
            answer = await self._answer(worker, child, timeout_s)
            if room is not None:  # it has verified all, and holds
                held = time.monotonic()
                await room()
                began += time.monotonic() - held
                await asyncio.to_thread(bounds.widen, child.pid, options)
                child.send({"open": True})
                answer = await self._answer(worker, child, timeout_s)
            start_s = time.monotonic() - began
            loaded = from_fields(Loaded, {**answer, "worker": worker, "pid": child.pid, "start_s": start_s})
            if worker in self._unwanted:
                raise WorkerError("unknown_worker", f"{worker} was ended while it loaded")
        except BaseException:
            child.kill()
            await self._forget(worker, child)
            raise
        task = asyncio.get_running_loop().create_task(self._watch(worker, child))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return loaded

    async def _forget(self, worker: str, child: Child) -> str:
        ended = await asyncio.shield(child.ended)
        self._children.pop(worker, None)
        self._asking.pop(worker, None)
        self._takes.pop(worker, None)
        self._why.pop(worker, None)
        self._nice.pop(worker, None)
        self._unwanted.discard(worker)
        with contextlib.suppress(OSError):
            os.unlink(self.upstream(worker)[0])
        bounds = self._bounds.pop(worker, None)
        if bounds:
            await asyncio.to_thread(bounds.release)
        return ended

    async def _how(self, worker: str, child: Child) -> tuple[str, str]:
        """(code, words) of an end that nobody asked for."""
        ended = await asyncio.shield(child.ended)
        words = f"{ended}: {child.last_words()}" if child.lines else ended
        bounds = self._bounds.get(worker)
        code = await asyncio.to_thread(bounds.why, ended, child.last_words()) if bounds else "worker_died"
        return code, words

    async def _watch(self, worker: str, child: Child) -> None:
        unwanted = worker in self._unwanted
        code, words = await self._how(worker, child)
        unwanted, why = unwanted or worker in self._unwanted, self._why.get(worker)
        await self._forget(worker, child)
        if not unwanted:
            words = words if code == "worker_died" else f"{code}: {words}"
            await self._died(worker, why or words)

    async def _answer(self, worker: str, child: Child, timeout_s: float) -> dict[str, Any]:
        try:
            answer = await asyncio.wait_for(child.read(), timeout_s)
        except asyncio.TimeoutError:
            self._why[worker] = f"worker_hung: no answer within {timeout_s:g} s"
            child.kill()
            raise WorkerError("worker_hung", f"no answer within {timeout_s:g} s; killed") from None
        except (EOFError, OSError):
            child.kill()
            code, words = await self._how(worker, child)
            if worker in self._unwanted:
                raise WorkerError("unknown_worker", f"{worker} was superseded or retired meanwhile") from None
            raise WorkerError(code, words) from None
        except ValueError as garbage:
            child.kill()
            raise WorkerError("worker_died", f"it spoke nonsense: {garbage}") from None
        error = answer.get("error")
        if error:
            code, message = str(error.get("code")), str(error.get("message"))
            refused = code in ("load_failed", "inference_failed") and out_of_memory(message)
            raise WorkerError("out_of_memory" if refused else code, message)
        ok = answer.get("ok")
        return ok if isinstance(ok, dict) else {}

    async def _ask(self, worker: str, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        child, lock = self._children.get(worker), self._asking.get(worker)
        if child is None or lock is None:
            raise WorkerError("unknown_worker", f"no worker {worker}: it may have died")
        async with lock:
            child.send(question)
            return await self._answer(worker, child, timeout_s)

    async def probe(self, order: Probe) -> Samples:
        """Raises WorkerError."""
        await self._be_nice(order.worker, order.nice)
        question = {"first": order.first, "runs": order.runs, "concurrency": order.concurrency}
        answer = await self._ask(order.worker, {"probe": question}, order.timeout_s)
        return from_fields(Samples, {**answer, "nice": self._nice.get(order.worker, 0)})

    async def _be_nice(self, worker: str, nice: int) -> None:
        child = self._children.get(worker)
        if child and nice != self._nice.get(worker, 0):
            self._nice[worker] = await asyncio.to_thread(niceness.be_nicer, child.pid, nice)

    async def evaluate(self, worker: str, timeout_s: float, answers: str = "", items: int = 0) -> Evaluation:
        """Raises WorkerError."""
        question = {"evaluate": {"answers": answers, "items": items}}
        return from_fields(Evaluation, await self._ask(worker, question, timeout_s))

    async def look(self, worker: str, timeout_s: float) -> Looked:
        """Raises WorkerError."""
        return from_fields(Looked, await self._ask(worker, {"look": {}}, timeout_s))

    async def serves(self, worker: str) -> None:
        """The owner's limit holds for it from now on, and it steps back for nobody."""
        await self._be_nice(worker, 0)
        bounds, child = self._bounds.get(worker), self._children.get(worker)
        if bounds and child and not bounds.lifted:
            await asyncio.to_thread(bounds.lift, child.pid)

    async def end(self, worker: str) -> None:
        """Begin to end it."""
        child = self._children.get(worker)
        if child:
            self._unwanted.add(worker)
            child.end()

    async def gone(self, worker: str) -> None:
        """Until its process has gone."""
        child = self._children.get(worker)
        if child:
            await asyncio.shield(child.ended)

    def pid(self, worker: str) -> int:
        """Its process id, 0 when it has none."""
        child = self._children.get(worker)
        return child.pid if child else 0

    def said(self, worker: str) -> list[str]:
        """The last lines on its standard error."""
        child = self._children.get(worker)
        return list(child.lines)[-LINES_TOLD:] if child else []

    async def close(self) -> None:
        """End all and wait."""
        children = list(self._children.items())
        for worker, child in children:
            self._unwanted.add(worker)
            child.end()
        await asyncio.gather(*(asyncio.shield(child.ended) for _, child in children))
        await asyncio.gather(*self._watches, return_exceptions=True)


def _at_once(options: dict[str, Any], concurrency: int) -> int:
    """How many requests a worker takes at once: the owner's number, and no fewer than one batch and the next."""
    batch = int((options.get("batching") or {}).get("max_size") or 0)
    return max(int(options.get("concurrency") or concurrency), 2 * batch)
