"""Put first on PYTHONPATH of processes that tests start: installs the guards of tests/guard.py there."""

import os
import sys

if os.environ.get("INTERLOCK_GUARD") == "1":
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    # By file: the package `tests` must not become importable in a process that is meant to be a real one.
    _spec = spec_from_file_location("interlock_test_guard", Path(__file__).resolve().parent.parent / "guard.py")
    if _spec is not None and _spec.loader is not None:
        _guard = module_from_spec(_spec)
        sys.modules["interlock_test_guard"] = _guard
        _spec.loader.exec_module(_guard)
        _guard.install()
