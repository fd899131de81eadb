"""A Triton Inference Server, driven through its repository API (`--model-control-mode=explicit`).

Rules of the file:
- One release is loaded, by the number of its generation. Triton goes on serving the former one until the new one is
  ready, and also when it refuses the new one.
- Functions block, and run in a thread (`asking`). What is wrong is a sentence, "" is well.
- One of them works on a model at a time: one whose time is up may still be writing.

The API: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from interlock_agent.host.asking import Asking
from interlock_agent.host.repository import ModelFolder, sealed

LOOK_TIMEOUT_S = 5.0  # for a question that loads nothing
LOOK_AGAIN_S = 0.05  # while a version comes or goes
MAX_INDEX_BYTES = 4 * 1024 * 1024
MAX_REQUEST_BYTES = 16 * 1024 * 1024

_locks: dict[tuple[str, str], threading.Lock] = {}


class _Alone:
    """The one that works on a model's folder. Raises TimeoutError when the former one does not end."""

    def __init__(self, settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking) -> None:
        self._lock = _locks.setdefault((settings["repository"], _name(settings, facts)), threading.Lock())
        self._asking = asking

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._asking.still()):
            raise TimeoutError("the former switch has not ended")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _name(settings: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    return str(settings["name"] or facts["UNIT"])


def _model(settings: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    return f"{settings['url'].rstrip('/')}/v2/models/{quote(_name(settings, facts))}"


def tell(settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking) -> str:
    """Serve the release in `FOLDER`, and no other; with an empty one nothing. Raises OSError, ValueError."""
    folder = ModelFolder(settings["repository"], _name(settings, facts), settings["template"])
    with _Alone(settings, facts, asking):
        if not facts["FOLDER"]:
            return _unload(settings, facts, folder, asking)
        release = sealed(facts["FOLDER"])
        folder.put(release, asking.still)
        asking.still()
        wrong = _order("load", settings, facts, asking)
        wrong = wrong or _settled(settings, facts, asking, release.generation)
        wrong = wrong or _checked(settings, facts, asking, release.generation)
        if not wrong and facts["REASON"] != "trial":
            folder.keep(release.generation)
        return wrong


def _unload(settings: Mapping[str, Any], facts: Mapping[str, str], folder: ModelFolder, asking: Asking) -> str:
    folder.forget()
    return _order("unload", settings, facts, asking) or _settled(settings, facts, asking, 0)


def _order(verb: str, settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking) -> str:
    url = f"{settings['url'].rstrip('/')}/v2/repository/models/{quote(_name(settings, facts))}/{verb}"
    status, words = asking.ask("POST", url, "{}")
    return "" if status == 200 else f"Triton does not {verb} it: HTTP {status}: {_error(words)}"


def _error(words: str) -> str:
    try:
        return str(json.loads(words)["error"]).strip()
    except (ValueError, KeyError, TypeError):
        return words


def _settled(settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking, generation: int) -> str:
    """Wait until that version is ready, and no other; 0: none."""
    name, wanted = _name(settings, facts), {str(generation)} if generation else set()
    url = f"{settings['url'].rstrip('/')}/v2/repository/index"
    while True:
        status, words = asking.ask("POST", url, json.dumps({"ready": True}), MAX_INDEX_BYTES)
        if status != 200:
            return f"Triton's index: HTTP {status}: {_error(words)}"
        listed = [one for one in json.loads(words) if one.get("name") == name and one.get("version")]
        ready = {str(one["version"]) for one in listed if one.get("state") == "READY"}
        if ready == wanted and (not generation or not _unready(settings, facts, asking, generation)):
            return ""
        asking.pause(LOOK_AGAIN_S)


def _unready(settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking, generation: int) -> str:
    status, words = asking.ask("GET", f"{_model(settings, facts)}/versions/{generation}/ready")
    if status == 200:
        return ""
    return f"Triton does not serve version {generation}: HTTP {status}: {_error(words)}"


def _checked(settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking, generation: int) -> str:
    """The owner's request, when there is one, is answered, and soon enough."""
    if not settings["request"]:
        return ""
    body = Path(settings["request"]).read_bytes()
    if len(body) > MAX_REQUEST_BYTES:
        return f"{settings['request']} has more than {MAX_REQUEST_BYTES} bytes"
    url = f"{_model(settings, facts)}/versions/{generation}/infer"
    best = 0.0
    for _ in range(2):  # the first one after a load warms it up
        began = time.monotonic()
        status, words = asking.ask("POST", url, body)
        best = (time.monotonic() - began) * 1000
        if status != 200:
            return f"Triton does not answer {settings['request']}: HTTP {status}: {_error(words)}"
    most = settings["answer_ms_max"]
    return f"Triton answered after {best:.1f} ms, more than {most:g} ms" if most and best > most else ""


def lost(settings: Mapping[str, Any], facts: Mapping[str, str], asking: Asking) -> str:
    """Why the release in `FOLDER` is not served (any more), or "". Outside a trial the former version's folder is
    removed: its slot has it still."""
    if not facts["FOLDER"]:
        return ""
    try:
        release = sealed(facts["FOLDER"])
    except ValueError:
        return ""  # it is being replaced: whoever does so tells
    wrong = _unready(settings, facts, asking, release.generation)
    if not wrong and facts["REASON"] == "confirmed":
        with _Alone(settings, facts, asking):
            ModelFolder(settings["repository"], _name(settings, facts), settings["template"]).keep(release.generation)
    return wrong


def away(settings: Mapping[str, Any], asking: Asking) -> str:
    """Why Triton can be told nothing, or ""."""
    try:
        status, _ = asking.ask("GET", f"{settings['url'].rstrip('/')}/v2/health/live")
    except (OSError, HTTPException) as failed:
        return f"Triton does not answer on {settings['url']}: {failed}"
    return "" if status == 200 else f"Triton on {settings['url']} is not live: HTTP {status}"
