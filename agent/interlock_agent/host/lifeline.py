"""How a child makes sure that it does not outlive its host.

Rules of the file:
- Standard library only. Called first thing in a child, before anything is opened.
- The kernel's signal at the parent's death comes too late if the parent is gone when it is asked for, hence the
  check. The end of the control stream is the second way; each child watches it itself.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end now if it has ended already. `parent`: its pid."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)
