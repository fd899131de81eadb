"""On the PYTHONPATH of agents that tests start: a rename into a slot can be held up, or fail, as a test says.

$INTERLOCK_E2E_HOOK names a folder. A file `slot` in it holds the next rename of a folder into a slot up for as long as
it is there (`slot.reached` says that one waits); with content, it is the number of the error that the rename ends with.
"""

import os
import re
import sys
import time
from typing import Any

_SLOT = re.compile(r"/slots/[^/]+/[ab]$")
_FOLDER = os.environ.get("INTERLOCK_E2E_HOOK", "")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "os.rename" or not _SLOT.search(str(arguments[1])):
        return
    held = os.path.join(_FOLDER, "slot")  # as little as possible is imported here
    if not os.path.exists(held):
        return
    with open(held) as file:
        number = file.read().strip()
    if number:
        os.unlink(held)
        raise OSError(int(number), os.strerror(int(number)), str(arguments[1]))
    open(held + ".reached", "w").close()
    while os.path.exists(held):
        time.sleep(0.005)
    os.unlink(held + ".reached")


if _FOLDER:
    sys.addaudithook(_hook)
