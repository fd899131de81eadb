"""Pages that the code prints: `make pages` writes them, tests/test_docs.py holds them equal."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from interlock_agent.core import states

ROOT = Path(__file__).resolve().parent.parent

STATES = """\
# The states of a unit

One model is one unit. Every change of phase is a row of one table, `agent/interlock_agent/core/states.py`, which prints
this page (`make pages`). A change is journaled before anything is done about it. After a restart the agent looks the
stored phase up in a second table, which is total; an unknown phase means: leave the confirmed release alone.

```mermaid
{diagram}
```

| phase | what | after a restart |
| --- | --- | --- |
{phases}

| event | what |
| --- | --- |
{events}

## The table

| in | when | next | then | |
| --- | --- | --- | --- | --- |
{rows}
"""


def _comments(enum: type) -> dict[str, str]:
    """Member value → the comment beside it."""
    found = re.finditer(r'^    [A-Z_]+ = "([a-z-]+)"  # (.+)$', inspect.getsource(enum), re.MULTILINE)
    return {match.group(1): match.group(2) for match in found}


def _effects(effects: tuple[states.Effect, ...]) -> str:
    return ", ".join(effect.value for effect in effects) or "–"


def states_page() -> str:
    """docs/reference/states.md."""
    again = {phase.value: resumption for phase, resumption in states.RESUME.items()}
    phases = [
        f"| `{name}` | {text} | {again[name].phase.value}: {_effects(again[name].effects)} |"
        for name, text in _comments(states.Phase).items()
    ]
    events = [f"| `{name}` | {text} |" for name, text in _comments(states.Event).items()]
    rows = []
    for (phase, event), row in states.ROWS.items():
        notes = [f"spends one {row.spends}"] if row.spends else []
        notes += ["remembered in quarantine"] if row.remembers else []
        rows.append(
            f"| {phase.value} | {event.value} | {row.next.value} | {_effects(row.effects)} | {', '.join(notes)} |"
        )
    return STATES.format(
        diagram=states.mermaid(), phases="\n".join(phases), events="\n".join(events), rows="\n".join(rows)
    )


PAGES = {"docs/reference/states.md": states_page}


def main() -> int:
    """Write them."""
    for name, page in PAGES.items():
        (ROOT / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
