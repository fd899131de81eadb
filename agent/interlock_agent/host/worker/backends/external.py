"""A model that Interlock does not run: an application of the device's owner does, from the release's folder.

The worker holds the folder, verified against its seal, so that all that switching promises holds for it too. It answers
what it is, and no inference.
"""

from __future__ import annotations

from typing import Any

from interlock_agent.host.worker.errors import BadRequest


class Session:
    """Nothing is opened; what it takes and gives is what the seal says."""

    runtime = "external"
    platform = "external"
    build = ""
    runs = False
    on_cpu = True

    @staticmethod
    def compiles(options: dict[str, Any]) -> bool:
        """Nothing is made here."""
        del options
        return False

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        del path
        self.providers = [str(name) for name in options.get("providers") or ()]
        self.fell_back = False
        self.inputs = [dict(entry) for entry in options["serve"]["inputs"]]
        self.outputs = [dict(entry) for entry in options["serve"]["outputs"]]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Never. Raises BadRequest."""
        del names, feeds
        raise BadRequest(501, "external", "an application of the device's owner runs this model, from its folder")
