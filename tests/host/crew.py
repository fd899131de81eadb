"""Threads of an application that ask one model without a pause, through the client, and look at every answer."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from interlock_agent import client
from interlock_agent.client import Model
from tests.host.rig import until


class Crew:
    """What they saw: answers by release, and what was not as it should be. A model multiplies by its generation."""

    def __init__(self, model: Model) -> None:
        self._model, self._ended = model, threading.Event()
        self.seen, self.wrong = Counter[str](), list[str]()

    def work(self, x: Any) -> None:
        """One thread's, until it is told to end or something is wrong."""
        while not self._ended.is_set() and not self.wrong:
            try:
                answer = self._model.infer({"x": x})
            except client.ModelError as failed:
                self.wrong.append(str(failed))
                return
            if not np.array_equal(answer["y"], x * answer.generation):
                self.wrong.append(f"{answer.release}: {answer['y'] / x}")
            self.seen[answer.release] += 1

    async def served(self, release: str) -> None:
        """That release has answered them again and again since now."""
        before = self.seen[release]
        await until(lambda: self.seen[release] >= before + 10 or self.wrong, f"{release} does not answer: {self.seen}")

    def end(self) -> None:
        """No further request."""
        self._ended.set()


@asynccontextmanager
async def asking(model: Model, *xs: Any) -> AsyncIterator[Crew]:
    """A thread for each input, until the block is left; then nothing may have been wrong."""
    crew = Crew(model)
    threads = [threading.Thread(target=crew.work, args=(x,)) for x in xs]
    for one in threads:
        one.start()
    try:
        yield crew
    finally:
        crew.end()
        for one in threads:
            await asyncio.to_thread(one.join)
        model.close()
    assert crew.wrong == []
