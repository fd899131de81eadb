"""A device keeps to its contract until its owner accepts another one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e import releases, stopped
from tests.e2e.stopped import Case
from tests.e2e.world import MODEL

pytestmark = pytest.mark.e2e


def labelled(case: Case, version: str, *labels: str) -> None:
    """Publish a release with that label map, and roll it out."""
    made = case.one.world
    made.scales[version] = float(version.split(".")[1]) / 8 + 3
    folder = made.folder / "releases" / version
    more = '\n[signature]\nlabels = "labels.txt"\n'
    releases.write(folder, version, made.scales[version], more=more)
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    made.publish(folder)
    case.version, case.rollout = version, case.one.wish(version)


def contract(case: Case, *words: str) -> dict[str, Any]:
    done = case.one.device.cli("contract", *words, "--json")
    return dict(json.loads(done.stdout))


def test_another_label_map_is_refused_until_it_is_accepted() -> None:
    with stopped.device() as one, stopped.case(one) as case:
        labelled(case, "9.1.0", "ant", "bee", "cat", "dog")
        case.settles()  # without labels in the contract, any will do
        shown = contract(case, "accept", MODEL, "--yes")
        assert (shown["accepted"], shown["contract"]["labels"]) == (True, 4)

        labelled(case, "9.2.0", "bee", "ant", "cat", "dog")
        case.ends, case.serves = "rejected", "9.1.0"
        case.settles()
        assert one.device.ask("status")["units"][MODEL]["reason"] == "contract_broken"
        assert contract(case, "show", MODEL)["difference"] == []
        assert len(contract(case, "show", MODEL, "--candidate")["difference"]) == 2

        assert contract(case, "accept", MODEL, "--candidate", "--yes")["forgiven"] == 1
        case.rollout = one.wish("9.2.0")
        case.ends, case.serves = "confirmed", ""
        case.settles()
