"""A backend under other names: a model that was renamed answers applications by the names of their contract.

Rules of the file:
- The names are the seal's, so that they go with the release, whichever slot it is in.
- An input with a default may be left out; its first axis, where that is dynamic, is the batch of what was sent.
- A twin is measured on the candidate's golden data: by the candidate's names, and without what only the candidate has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interlock_agent.host.worker.inference import Backend
from interlock_agent.host.worker.tensors import DTYPES


class Renamed:
    """`names`: the backend's own -> those it is asked by. `defaults`: own name -> what each element is."""

    def __init__(self, backend: Backend, names: dict[str, str], defaults: dict[str, Any] | None = None) -> None:
        self._backend, self._names = backend, names
        self._inputs = {names.get(e["name"], e["name"]): e["name"] for e in backend.inputs}
        self._outputs = {names.get(e["name"], e["name"]): e["name"] for e in backend.outputs}
        defaults = defaults or {}
        self._defaults = [(e, defaults[e["name"]]) for e in backend.inputs if e["name"] in defaults]
        self.inputs = [self._described(entry, defaults) for entry in backend.inputs]
        self.outputs = [self._described(entry, {}) for entry in backend.outputs]

    def _described(self, entry: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        optional = {"optional": True} if entry["name"] in defaults else {}
        return {**entry, "name": self._names.get(entry["name"], entry["name"]), **optional}

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """As Backend's; a feed that the backend does not know is left out."""
        mine = {self._inputs[name]: value for name, value in feeds.items() if name in self._inputs}
        for entry, value in self._defaults:
            if entry["name"] not in mine:
                mine[entry["name"]] = _filled(entry, value, mine)
        return self._backend.run([self._outputs[name] for name in names], mine)


def _filled(entry: dict[str, Any], value: Any, feeds: dict[str, Any]) -> Any:
    batch = next((len(array) for array in feeds.values() if array.ndim), 1)
    return np.full([batch if axis < 0 else axis for axis in entry["shape"]], value, DTYPES[entry["dtype"]])


def served(backend: Backend, serve: dict[str, Any]) -> Backend:
    """As applications know it; `serve` is the seal's."""
    renamed, defaults = serve.get("renamed") or {}, _defaults(serve)
    return Renamed(backend, renamed, defaults) if renamed or defaults else backend


def measured(backend: Backend, serve: dict[str, Any], golden: dict[str, Any]) -> Backend:
    """By the names of the release whose golden data it is; both arguments are `serve` of a seal."""
    theirs = {seen: own for own, seen in (golden.get("renamed") or {}).items()}
    renamed = serve.get("renamed") or {}
    seen = {e["name"]: renamed.get(e["name"], e["name"]) for e in (*backend.inputs, *backend.outputs)}
    return Renamed(backend, {own: theirs.get(name, name) for own, name in seen.items()}, _defaults(serve))


def _defaults(serve: dict[str, Any]) -> dict[str, Any]:
    return {tensor["name"]: tensor["default"] for tensor in serve["inputs"] if tensor.get("default") is not None}
