"""Small: the memory of the candidate's process, alone and beside what serves; what it lost and spent in its blocks."""

from __future__ import annotations

from typing import Any

from interlock_agent.core.gate import small as judge
from interlock_agent.core.gate.checks import not_applicable
from interlock_agent.core.gate.small import Held, Spent
from interlock_agent.host import messages
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """Figures of the blocks that were measured, and the device as it is with all of them still loaded."""
    hardware, limits, costs = run.place.hardware, run.limits, tried.costs
    workers = await _workers(run)
    mine = dict(hardware.process(int(tried.loaded.get("pid", 0))))
    live = next((dict(hardware.process(one["pid"])) for one in workers if one.get("role") == "live"), None)
    leaving = [
        hardware.process(one["pid"])
        for one in workers
        if one.get("role") != "live" and one.get("worker") != tried.worker
    ]
    free, facts = hardware.free(), run.place.fingerprint
    peak = max(tried.peak_bytes, int(tried.loaded.get("memory_bytes", 0)), mine.get("peak_bytes", 0))
    rows = judge.memory(
        "",
        Held(peak, mine.get("resident_bytes")),
        None if live is None else Held(live.get("peak_bytes"), live.get("resident_bytes")),
        sum(one.get("resident_bytes", 0) for one in leaving),
        (free.get("memory_free_bytes"), facts.get("memory_bytes")),
        limits.get("memory_max_bytes"),
    )
    if facts.get("gpu_integrated"):  # its memory is the CPU's, and was judged as that
        rows.append(not_applicable("gpu_memory_peak", "integrated"))
    else:
        held = costs.look_at_gpu(hardware, tried.loaded)
        rows += judge.memory(
            "gpu_",
            Held(costs.gpu_peak, held),
            None if live is None else Held(live.get("gpu_bytes"), live.get("gpu_bytes")),
            sum(one.get("gpu_bytes", 0) for one in leaving),
            (free.get("gpu_memory_free_bytes"), facts.get("gpu_memory_bytes")),
            limits.get("gpu_memory_max_bytes"),
        )
    if not run.measurable:
        return [
            *rows,
            not_applicable("memory_leak_per_1000", "no_golden"),
            not_applicable("energy_per_inference", "no_golden"),
        ]
    mine_j, theirs_j = (costs.spent.get(name, Spent()) for name in ("candidate", "incumbent"))
    return [
        *rows,
        judge.leak(costs.resident, limits.get("memory_leak_max_bytes_per_1000")),
        judge.energy(mine_j, theirs_j, limits.get("energy_max_j"), alone=not run.guest.before),
    ]


async def _workers(run: Run) -> list[dict[str, Any]]:
    """Those of this unit, as the host sees them."""
    units = (await run.request(messages.Status()))["units"]
    return [worker for unit in units if unit.get("unit") == run.place.unit for worker in unit.get("workers", ())]
