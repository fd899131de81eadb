"""Every document from outside, damaged in every plain way: a typed error that names the field, and nothing accepted.

The documents and their parsers are those that are fuzzed: below a signature the damaged content is signed again.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from interlock_shared.errors import InterlockError, Invalid
from tests.fuzz.targets import targets

DOCUMENTS = (
    *("manifest", "desired-signed", "permit-signed", "event-from-device", "report-from-device", "enrolment"),
    "director",
)
REPORTS = ("event-from-device", "report-from-device")  # a newer agent says more: what is unknown is kept and ignored
WRONG: tuple[Any, ...] = ({"x": []}, [[1]], -1.5, True)


def refused(name: str, data: bytes) -> Invalid:
    with pytest.raises(InterlockError) as error:
        targets()[name].read(data)
    assert isinstance(error.value, Invalid), error.value
    assert error.value.details.get("field"), "it says where"
    assert error.value.message
    return error.value


def whole(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(targets()[name].seeds[0])
    return document


def encoded(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_no_document(name: str) -> None:
    good = encoded(whole(name))
    nested = b'{"a":' * 40 + b"1" + b"}" * 40
    for data in (b"", b"[]", b"null", b'"x"', good[:-1], good[: len(good) // 2], b"\xff\xfe{", nested, nested * 300):
        refused(name, data)
    first = good[1:].split(b":", 1)[0]
    refused(name, b"{" + first + b":1," + good[1:])  # a key twice
    for number in (b"NaN", b"Infinity", b"1e999"):
        refused(name, good[:-1] + b',"zz":' + number + b"}")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_too_large(name: str) -> None:
    document = whole(name)
    document["zz"] = "x" * (9 * 1024 * 1024)
    refused(name, encoded(document))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_that_nobody_knows(name: str) -> None:
    document = {**whole(name), "colour": "red"}
    if name in REPORTS:
        targets()[name].read(encoded(document))
    else:
        assert "colour" in refused(name, encoded(document)).details["field"]


def outcome(name: str, document: dict[str, Any]) -> str | None:
    """The field that a refusal names; None: accepted."""
    try:
        targets()[name].read(encoded(document))
    except InterlockError as error:
        return str(error.details.get("field", "")) or error.code
    return None


OF_A_DEVICE = ("other_device", "needs_agent")  # codes of what is well-formed, and not for us


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_of_another_kind_is_named(name: str) -> None:
    document = whole(name)
    for field, value in document.items():
        for wrong in WRONG:
            if not isinstance(wrong, type(value)) and not (isinstance(value, int) and wrong is True):
                named = outcome(name, {**document, field: wrong})
                assert named is not None, (field, wrong)
                assert named.startswith((field, *OF_A_DEVICE)), (field, wrong)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_field_that_is_missing_is_named(name: str) -> None:
    document = whole(name)
    named = {
        field: outcome(name, {key: value for key, value in document.items() if key != field}) for field in document
    }
    assert all(told is None or told.startswith(field) for field, told in named.items()), named
    assert any(named.values()), "most of them are needed"


HOSTILE = ("../../etc/passwd", "a/b", "+", "#", "\u0000", "a" * 300, "", "ünï", "a\nb")


@pytest.mark.parametrize("name", ["manifest", "desired-signed", "permit-signed", "enrolment"])
def test_a_name_is_never_a_path_or_a_pattern(name: str) -> None:
    document = whole(name)
    for field in {"model", "device", "name"} & document.keys():
        for value in HOSTILE:
            error = refused(name, encoded({**document, field: value}))
            assert error.details["field"] == field


@pytest.mark.parametrize("time", ["2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z"])
@pytest.mark.parametrize(("name", "field"), [("desired-signed", "issued_at"), ("permit-signed", "expires_at")])
def test_a_time_that_there_is_not_is_named(name: str, field: str, time: str) -> None:
    """Whoever signed it: one that passed would end the agent where it is counted with."""
    assert refused(name, encoded({**whole(name), field: time})).details["field"] == field
