"""`python -m interlock_agent.host.front CONTROL PARENT LISTENER`: started by the host, never by hand."""

from __future__ import annotations

import sys

from interlock_agent.host.lifeline import die_with_parent


def start() -> None:
    """Tie this life to the host's, then serve."""
    control, parent, listener = sys.argv[1:]
    die_with_parent(int(parent))
    from interlock_agent.host.front.service import main

    main([control, listener])


if __name__ == "__main__":
    start()
