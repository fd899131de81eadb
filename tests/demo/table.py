"""The demo's table: step, expected, seen, time. A terminal gets colour and progress, a pipe gets plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One line of the table."""

    step: str
    expected: str
    seen: str
    good: bool
    seconds: float


@dataclass
class Report:
    """Collects rows, and says what goes on."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    rows: list[Row] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of narration."""
        self.console.print(text)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A step of the story, with a spinner where there is a terminal."""
        self.console.print(f"[bold]{title}[/]")
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(title):
            yield

    def expect(self, step: str, expected: str, look: Callable[[], tuple[bool, str]]) -> None:
        """Carry out a check; its time is part of the row. A check that raises is a row that failed."""
        began = time.monotonic()
        try:
            good, seen = look()
        except Exception as broken:  # noqa: BLE001  # whatever breaks a step is a step that failed
            good, seen = False, f"{type(broken).__name__}: {broken}"
        row = Row(step, expected, seen, good, time.monotonic() - began)
        self.rows.append(row)
        mark = "[green]✓[/]" if good else "[red]✗[/]"
        self.console.print(f"  {mark} {step}: {seen} [dim]({row.seconds:.1f} s)[/]")

    @property
    def good(self) -> bool:
        """Whether everything was as expected."""
        return bool(self.rows) and all(row.good for row in self.rows)

    def show(self) -> None:
        """The table at the end."""
        if not self.console.is_terminal:
            for row in self.rows:
                self.console.print(
                    f"{'ok  ' if row.good else 'FAIL'} {row.step} | {row.expected} | {row.seen} | {row.seconds:.1f} s"
                )
            return
        table = Table("", "step", "expected", "seen", "time")
        for row in self.rows:
            table.add_row(
                "[green]✓[/]" if row.good else "[red]✗[/]", row.step, row.expected, row.seen, f"{row.seconds:.1f} s"
            )
        self.console.print(table)
