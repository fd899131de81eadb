"""`python -m interlock_agent.host.worker CONTROL PARENT`: one process, one loaded model. Started by the host.

Rules of the file:
- First the ties and limits, then the seal, then numpy and the runtime: nothing is parsed that was not verified.
- The host speaks first (`load`), then asks (`probe`, `evaluate`), one thing at a time; requests of applications come
  in by the worker's own socket meanwhile. The end of the control stream is the end.
"""

from __future__ import annotations

import importlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from interlock_agent.host.lifeline import die_with_parent
from interlock_agent.host.wire import allow_descriptors, read_document, send_document
from interlock_agent.host.worker import engines, scan
from interlock_agent.host.worker.errors import LoadError
from interlock_agent.host.worker.folder import Folder

# Runtime in the seal -> the backend's module. A name that is not here is refused, never imported.
BACKENDS = {
    "onnxruntime": "interlock_agent.host.worker.backends.onnxruntime",
    "tensorrt": "interlock_agent.host.worker.backends.tensorrt",
    "external": "interlock_agent.host.worker.backends.external",
}


def limit(options: dict[str, Any]) -> None:
    """No core dumps (they hold live inputs), and no more memory than granted: now, and when it serves."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allow_descriptors()
    owner = int(options.get("memory_limit_bytes") or 0) or resource.RLIM_INFINITY
    now = int(options.get("memory_now_bytes") or 0) or owner
    if now != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (now, owner))


class Worker:
    """A loaded release. `hold` waits for the host's word that it may be opened. Raises LoadError when it cannot be."""

    def __init__(self, order: dict[str, Any], hold: Callable[[], None] = lambda: None) -> None:
        began = time.perf_counter()
        options = order.get("options") or {}
        self._folder = Folder(order["folder"])
        self._folder.verify()
        golden_folder = options.get("golden_folder")
        self._golden_folder = Folder(golden_folder) if golden_folder else self._folder
        if golden_folder and self._golden_folder.seal.get("golden"):
            self._golden_folder.verify(self._golden_folder.seal["golden"]["file"])
        seal = self._folder.seal
        try:
            serve, name, version = seal["serve"], str(seal["model"]), str(seal["version"])
            module = BACKENDS.get(serve["runtime"])
            if module is None:
                raise LoadError("load_failed", f"no backend for runtime {serve['runtime']!r}")
            path = self._folder.path(serve["file"])
            known = serve.get("renamed") or {}  # to applications, by another name
            free = (o["name"] for o in serve["outputs"] if o.get("non_finite") == "allowed")
            allowed = frozenset(known.get(name, name) for name in free)
            # What serves has passed: a stricter release of ours must not end it.
            if options.get("role") == "candidate" and (serve["runtime"] == "onnxruntime" or path.endswith(".onnx")):
                files = [entry["name"] for entry in seal["files"]]
                scan.check(path, files, bool(serve.get("compiled_context")), serve.get("custom_ops") or ())
        except (KeyError, TypeError) as error:
            raise LoadError("corrupt", f"the seal lacks {error}") from None
        try:
            backend = importlib.import_module(module)
        except ImportError as error:
            raise LoadError("load_failed", f"{sys.executable}: {error}") from None
        options["serve"] = serve
        if options.get("hold"):  # what serves makes room for it: as late, and for as short a time, as can be
            verified = time.perf_counter()
            hold()
            began += time.perf_counter() - verified
        self._engine = self._prepare_engines(backend.Session, options)
        self._session: Any = backend.Session(path, options)
        # While it is judged, another form's engines in this folder may be those of the one that will serve.
        if self._engine and options.get("role") not in ("candidate", "twin"):
            engines.remove_others(*options["engines"])
        from interlock_agent.host.worker import inference, names, sanity, serving

        self._batching = options.get("batching") or {}
        self._served: Any = sanity.watched(self._batched(names.served(self._session, serve)), serve)
        model = inference.Model(name, version, self._served, allowed)
        serving.Serving(model, self._session.platform).listen(order["socket"])
        self._golden: Any = None
        self._metrics = [str(name) for name in options.get("metrics") or ()]
        self._load_s = time.perf_counter() - began

    def _batched(self, backend: Any) -> Any:
        """With the owner's dynamic batching, where he wants it and the model can."""
        from interlock_agent.host.worker import batching

        if not self._batching or not self._session.runs:
            return backend
        if not batching.can(backend):
            sys.stderr.write("no batching: the first axis is not dynamic in every input and output\n")
            return backend
        return batching.Batcher(backend, int(self._batching["max_size"]), float(self._batching["delay_s"]))

    def _prepare_engines(self, session: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Where a provider that compiles keeps its engines: `options["engines"]`. Their key, and whether they were
        there already; empty without such a provider."""
        if not session.compiles(options):
            return {}
        name = engines.key(self._folder.seal, options, engines.facts(session.runtime, session.build))
        folder = self._folder.ours(engines.FOLDER)
        try:
            cached = engines.make_folder(folder, name)
        except OSError as error:
            raise LoadError("load_failed", f"engines cannot be kept: {error}") from None
        options["engines"] = [folder, name]
        return {"key": name, "cached": cached}

    def loaded(self) -> dict[str, Any]:
        """`messages.Loaded`, without what only the host knows."""
        from interlock_agent.host.worker import golden

        session = self._session
        return {
            "inputs": session.inputs,
            "outputs": session.outputs,
            "providers": session.providers,
            "fell_back": session.fell_back,
            "load_s": self._load_s,
            "memory_bytes": golden.memory_bytes(),
            "runtime": session.runtime,
            "engine": self._engine,
            "work": "cpu" if session.on_cpu else "wall",
        }

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question of the host."""
        if not self._session.runs:
            raise LoadError("no_golden", "this model is not run here")
        if "look" in question:
            counts = getattr(self._served, "counts", dict)
            return dict(counts())
        if self._golden is None:
            from interlock_agent.host.worker import golden, names

            session, folder = self._session, self._golden_folder
            if folder is not self._folder:
                session = names.measured(session, self._folder.seal["serve"], folder.seal["serve"])
            self._golden = golden.Golden(folder, session, self._metrics)
            self._golden.on_cpu = self._session.on_cpu
            self._golden.crowded = self._batched(session)
        if "probe" in question:
            probe = question["probe"]
            found = self._golden.probe(int(probe["first"]), int(probe["runs"]), int(probe.get("concurrency", 1)))
        else:
            asked = question["evaluate"]
            found = self._golden.evaluate(str(asked.get("answers", "")), int(asked.get("items") or 0))
        return dict(found)


def main() -> None:
    """Until the host ends the stream."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    worker: Worker | None = None

    def hold() -> None:
        send_document(control, {"ok": {"held": True}})
        try:
            read_document(control)
        except (EOFError, OSError):
            os._exit(0)

    while True:
        try:
            question = read_document(control)
        except (EOFError, OSError):
            os._exit(0)
        try:
            if worker is None:
                limit(question["load"].get("options") or {})
                worker = Worker(question["load"], hold)
                answer = worker.loaded()
            else:
                answer = worker.answer(question)
            send_document(control, {"ok": answer})
        except LoadError as failure:
            send_document(control, {"error": {"code": failure.code, "message": failure.message}})
        except Exception as failure:  # noqa: BLE001 - told to the host, who decides
            text = f"{type(failure).__name__}: {failure}"[:2000]
            code = "load_failed" if worker is None else "inference_failed"
            send_document(control, {"error": {"code": code, "message": text}})


if __name__ == "__main__":
    main()
