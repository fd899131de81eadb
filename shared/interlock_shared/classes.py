"""Classes of devices, for a permit that names no ids: what a device that has never met its server knows of itself.

A selector is one or more facts that must all hold, `gpu=NVIDIA L4,arch=x86_64`; a word alone is the name that the
owner's configuration gives this device (`device.class`), so that `press` and `class=press` are the same. Labels are not
among the facts: they are the server's, and may be others by now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from interlock_shared.errors import Invalid

FACTS = {
    "class": "the name in the owner's configuration, `device.class`",
    "gpu": "the GPU's name, as its driver tells it",
    "compute_capability": "of the GPU, e.g. 8.7",
    "board": "the board's name, where there is a device tree",
    "arch": "x86_64, aarch64",
    "jetpack": "on Jetson",
    "l4t": "on Jetson",
}
SELECTORS_MAX = 64  # in one permit
VALUE_MAX = 128  # characters of a fact


def parse(text: str) -> dict[str, str]:
    """The facts of a selector. Raises Invalid, naming the facts that there are."""
    facts: dict[str, str] = {}
    for part in text.split(","):
        name, found, value = part.strip().partition("=")
        if not found:
            name, value = "class", name
        name, value = name.strip(), value.strip()
        if name not in FACTS or not value or name in facts:
            raise Invalid(
                f"class {text[:80]!r}: expected NAME, or FACT=VALUE,…; the facts are {', '.join(FACTS)}", field="class"
            )
        facts[name] = value
    return check(facts)


def check(facts: Mapping[str, str]) -> dict[str, str]:
    """A selector as it stands in a document. Raises Invalid."""
    unknown = sorted(set(facts) - set(FACTS))
    if unknown or not facts:
        what = f"there is no fact {unknown[0][:40]!r}" if unknown else "it names no fact"
        raise Invalid(f"class: {what}; the facts are {', '.join(FACTS)}", field="class")
    if any(not 0 < len(value) <= VALUE_MAX for value in facts.values()):
        raise Invalid(f"class: a value has 1 to {VALUE_MAX} characters", field="class")
    return dict(facts)


def show(facts: Mapping[str, str]) -> str:
    """The selector as people write it, the owner's name first."""
    named = [facts["class"]] if "class" in facts else []
    return ",".join([*named, *(f"{name}={value}" for name, value in sorted(facts.items()) if name != "class")])


def of_device(name: str, fingerprint: Mapping[str, object]) -> dict[str, str]:
    """A device's facts: the owner's name for its class, and what its fingerprint tells."""
    known = {fact: str(fingerprint[fact]) for fact in FACTS if fact in fingerprint and fact != "class"}
    return known | ({"class": name} if name else {})


def belongs(facts: Mapping[str, str], selectors: Iterable[Mapping[str, str]]) -> bool:
    """Whether a device with these facts is in one of the classes; a fact that it lacks does not hold."""
    return any(bool(wanted) and wanted.items() <= facts.items() for wanted in selectors)
