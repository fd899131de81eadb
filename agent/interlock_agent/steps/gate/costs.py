"""What an inference costs beside time: memory after each block, and energy over it, read where the blocks are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.core.gate.small import Spent
from interlock_agent.ports import Hardware


@dataclass
class Costs:
    """Of one variant of the candidate, and of the twin beside it. `resident`: (inferences so far, bytes) of the
    candidate after each block; `spent`: by the blocks' name."""

    inferences: int = 0
    resident: list[tuple[int, int]] = field(default_factory=list)
    gpu_peak: int | None = None
    spent: dict[str, Spent] = field(default_factory=dict)
    _before: float | None = None

    def before(self, hardware: Hardware) -> None:
        """A block begins."""
        self._before = hardware.energy_j()

    def after(self, hardware: Hardware, name: str, runs: int) -> None:
        """The block of that name ended: what the device spent meanwhile."""
        now = hardware.energy_j()
        if now is not None and self._before is not None:
            old = self.spent.get(name, Spent())
            self.spent[name] = Spent(old.joules + now - self._before, old.inferences + runs)

    def candidate(self, hardware: Hardware, loaded: Mapping[str, Any], answer: Mapping[str, Any], runs: int) -> None:
        """It was the candidate's: what its process holds now."""
        self.inferences += runs
        self.resident.append((self.inferences, int(answer.get("resident_bytes", 0))))
        self.look_at_gpu(hardware, loaded)

    def look_at_gpu(self, hardware: Hardware, loaded: Mapping[str, Any]) -> int | None:
        """What the candidate's process holds on the GPU now; the most is kept."""
        held = hardware.process(int(loaded.get("pid", 0))).get("gpu_bytes")
        if held is not None:
            self.gpu_peak = max(held, self.gpu_peak or 0)
        return held
