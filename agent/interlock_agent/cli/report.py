"""A verdict document for people: why in one sentence, every check with its figures, the picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from interlock_agent.cli import output
from interlock_shared import plot
from interlock_shared.errors import Invalid

COLOURS = {"accept": "green", "reject": "red", "pass": "green", "fail": "red", "inconclusive": "yellow"}
PLAIN = ("fraction", "candidate / incumbent", "incumbent / incumbent", "values outside tolerance")  # said by the name

# What a reason means, for people; the figures that led to it follow. One that is not here speaks for itself.
WHY = {
    "contract_broken": "applications on this device rely on what it changes",
    "requirement_unmet": "this device does not have what it asks for",
    "built_for_another": "it was compiled for another device",
    "no_command": "the owner has configured nothing that could measure it",
    "command_refused": "the owner's command found fault with it",
    "no_reference": "nothing is there that this form could be compared with",
    "gates_none_forbidden": "it wants no gate, and the owner does not allow that",
    "signature_mismatch": "the model is not what its manifest says",
    "provider_fallback": "it does not run on the configured providers",
    "load_failed": "it could not be opened",
    "worker_died": "its process ended by itself",
    "worker_hung": "its process did not answer in time",
    "inference_failed": "it could not answer",
    "out_of_memory": "it took more memory than it may",
    "compiled_context": "it brings compiled parts that its manifest does not declare",
    "custom_ops": "it brings operators that its manifest does not declare",
    "external_data": "it names data files outside the bundle",
    "golden_mismatch": "its answers are not the golden ones",
    "non_finite_output": "it answers with NaN or Inf",
    "accuracy_below_floor": "it is right too rarely",
    "accuracy_dropped": "it is right less often than the incumbent",
    "error_above_limit": "its error is larger than allowed",
    "error_rose": "its error is larger than the incumbent's",
    "not_deterministic": "it answers differently when asked again",
    "metric_not_allowed": "the owner has not allowed the metric that it is judged by",
    "too_few_items": "there are too few golden items to tell",
    "too_slow": "it is slower than allowed",
    "too_few_per_second": "it answers fewer requests a second than asked for",
    "starts_too_slowly": "it takes longer to start than allowed",
    "too_large": "it needs more memory than allowed",
    "not_alone": "what others do on the device is in the figure",
    "too_little_free": "it does not fit beside what runs on the device now",
    "leaks": "it takes more memory the longer it runs",
    "too_much_energy": "it needs more energy than allowed",
    "too_noisy": "the device was too noisy to tell",
    "biased": "the device does not measure two equal things as equal",
    "no_baseline": "nothing is there that its speed could be compared with",
    "no_time": "the time for measuring was over before it could be told",
    "host_too_old": "the host is older than the agent: it cannot tell before it is restarted",
}


def show(document: dict[str, Any]) -> None:
    """The whole verdict."""
    outcome = document["outcome"]
    beside = f" beside {document['incumbent']['version']}" if document["incumbent"] else ""
    release = escape(f"{document['model']} {document['version']} ({document['variant']}){beside}")
    output.out.print(f"[bold]{release}: {_coloured(outcome)}[/]", soft_wrap=True)
    why = WHY.get(document["reason"])
    output.out.print(escape(f"{why} – {document['message']}" if why else document["message"]))
    output.out.print()
    rows = [row for stage in document["stages"] for row in _stage_rows(stage)]
    columns = ("check", "measured", "limit", "incumbent", "margin", "outcome")
    output.show_table(columns, rows, optional=("incumbent", "margin"), dense=True)
    if document.get("others"):
        output.out.print("\nvariants", style="bold")
        output.show_table(("variant", "outcome", "why"), variant_rows(document), dense=True)


def variant_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each form that was tried: what became of it, and how it did beside another that passed too."""
    chosen = {name: document[name] for name in ("variant", "outcome", "reason", "message")}
    rows: list[tuple[str, ...]] = []
    for one in (chosen, *document["others"]):
        words = one["message"] if one["outcome"] != "accept" else _beside(one["variant"], document["comparisons"])
        taken = one is chosen and one["outcome"] == "accept"
        rows.append((escape(one["variant"]), _coloured(one["outcome"]), "chosen" * taken or escape(words)))
    return rows


def _beside(variant: str, comparisons: list[dict[str, Any]]) -> str:
    """Why one that passed was not taken."""
    for one in comparisons:
        if (variant == one["variant"] and not one["faster"]) or (variant == one["against"] and one["faster"]):
            ratio = one["checks"][0]
            if ratio["measured"] is None:
                problems = ratio["detail"].get("problems") or [ratio["reason"]]
                return f"not measured beside {one['against']}: {problems[0]}"
            return f"not the fastest: {one['variant']} ÷ {one['against']} {_figure(ratio['measured'])} in work"
    return "not the fastest"


def write_picture(document: dict[str, Any], target: str) -> None:
    """The latencies as SVG into a file, or to standard output for `-`. Raises Invalid."""
    text = plot.svg(document)
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as bad:
        raise Invalid(f"{target}: {bad.strerror}", code="io", field="--svg") from None


def _coloured(outcome: str) -> str:
    words = escape(outcome.replace("_", " "))
    return f"[{COLOURS[outcome]}]{words}[/]" if outcome in COLOURS else words


def _stage_rows(stage: dict[str, Any]) -> list[tuple[str, ...]]:
    """The stage, then its checks, a little to the right."""
    head = (f"[bold]{stage['stage']}[/]", "", "", "", "", "" if stage["checks"] else _coloured(stage["outcome"]))
    return [head, *(_check_row(check) for check in stage["checks"])]


def _check_row(check: dict[str, Any]) -> tuple[str, ...]:
    unit = "" if check["unit"] in PLAIN else check["unit"] or ""
    measured = _figure(check["measured"], unit)
    if check["low"] is not None and check["high"] is not None:
        between = "\n" if output.out.is_terminal else " "  # a program reads whole lines
        low, high = (_figure(check[name], "bytes" * (unit == "bytes")) for name in ("low", "high"))
        measured += f"{between}\\[{low}, {high}]"
    limit, incumbent = (_figure(check[name], unit) for name in ("limit", "incumbent"))
    return "  " + escape(check["check"]), measured, limit, incumbent, margin(check), _outcome(check)


def _outcome(check: dict[str, Any]) -> str:
    """What is not applicable says why instead."""
    why = escape(check["reason"].replace("_", " "))
    if check["outcome"] == "not_applicable":
        return f"[dim]{why or 'not applicable'}[/]"
    return _coloured(check["outcome"]) + (f" ({why})" if why not in ("ok", "") else "")


def margin(check: dict[str, Any]) -> str:
    """How far the figure lies inside the limit (+) or beyond it (−): percent of the limit; of a share, points."""
    limit, measured = check["limit"], check["measured"]
    if check["outcome"] not in COLOURS or not _is_number(limit) or not _is_number(measured):
        return ""
    within = measured >= limit if _has_floor(check["check"]) else measured <= limit
    inside = check["outcome"] == "pass" or (check["outcome"] == "inconclusive" and within)
    distance = abs(limit - measured) * (1 if inside else -1)
    if check["unit"] == "fraction":
        text = f"{100 * distance:+.3g} pp"
    elif limit:
        text = f"{100 * distance / abs(limit):+.3g} %"
    else:
        text = f"{distance:+.4g}"
    return "0" + text[2:] if text[:2] in ("+0", "-0") and text[2:3] in ("", " ") else text.replace("-", "−")


def _has_floor(check: str) -> bool:
    """Whether more is better; of a slice as of the whole."""
    name = check.partition(".")[0]
    return name in ("accuracy", "parity_cosine", "parity_top_k") or name.startswith("throughput_")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: Any, unit: str = "") -> str:
    if isinstance(value, bool) or value is None:
        return ""
    if not _is_number(value):
        return escape(str(value))
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if abs(value) >= 2**30 else f"{value / 2**20:.1f} MiB"
    return f"{value:.4g} {escape(unit)}".rstrip()
