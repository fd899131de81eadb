"""Atheris on one target, in a process of its own: `python -m tests.fuzz.coverage_guided TARGET [libFuzzer's options]`.

It ends with libFuzzer's code: 0, or 77 with the input in a file below `-artifact_prefix`.
"""

from __future__ import annotations

import logging
import sys


def main() -> None:
    """Until libFuzzer ends the process."""
    import atheris

    name, options = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["interlock_shared", "interlock_agent", "interlock_server", "tuf.api"]):
        from tests.fuzz.targets import believed, targets
    logging.disable(logging.CRITICAL)
    target = targets()[name]
    atheris.Setup([sys.argv[0], *options], lambda data: believed(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
