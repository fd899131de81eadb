"""Whether a process that begins now can use the device's key: `python -m interlock_agent.keys PAIR`; exit 0 or 1."""

from __future__ import annotations

import sys
from pathlib import Path

from interlock_agent.keys import places
from interlock_shared.errors import InterlockError


def main(path: str) -> int:
    """Sign once."""
    try:
        key = places.held(Path(path).read_bytes())
        if key is not None:
            key.sign(b"interlock")
    except (InterlockError, OSError) as bad:
        print(bad, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
