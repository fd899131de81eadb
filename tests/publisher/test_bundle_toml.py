"""Every complaint about a bundle.toml names the line and the field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_server.publisher import bundle_toml, toml_lines
from interlock_shared.errors import Invalid, NotFound

GOOD = """\
model = "detector"
version = "1.4.0"

[[variants]]
name = "fp32"
file = "model.onnx"
"""
TWO = GOOD + '[[variants]]\nname = "int8"\nfile = "small.onnx"\n'

# Text, line, field, a word of the complaint.
BAD = [
    ("model = ", 1, "bundle.toml", "not TOML"),
    ('model = "a"\nmodel = "b"\n', 2, "bundle.toml", "not TOML"),
    ("x = " + "[" * 5000, 1, "bundle.toml", "not TOML"),
    ('version = "1.0.0"\n' + GOOD[38:], 1, "model", "needed"),
    (GOOD.replace("detector", "Detector"), 1, "model", "pattern"),
    (GOOD.replace("detector", "../x"), 1, "model", "pattern"),
    (GOOD.replace('"detector"', "7"), 1, "model", "string"),
    (GOOD.replace("1.4.0", "1.4"), 2, "version", "pattern"),
    (GOOD.replace("model.onnx", "../model.onnx"), 6, "variants.0.file", "pattern"),
    (GOOD.replace("model.onnx", "/etc/passwd"), 6, "variants.0.file", "pattern"),
    (GOOD.replace("model.onnx", "manifest.json"), 6, "variants.0.file", "reserved"),
    (GOOD.replace("model.onnx", ".hidden"), 6, "variants.0.file", "pattern"),
    (GOOD + 'runtime = "caffe"\n', 7, "variants.0.runtime", "onnxruntime"),
    (GOOD + "colour = 1\n", 7, "variants.0.colour", "no such field"),
    (GOOD + "reference = false\n", 7, "variants.0.reference", "exactly one"),
    (GOOD + "[gates]\naccuracy_min = 1.5\n", 8, "gates.accuracy_min", "less than or equal"),
    (GOOD + "[gates]\naccuracy_min = nan\n", 8, "gates.accuracy_min", "no limit"),
    (GOOD + "[gates]\nlatency_p95 = 5\n", 8, "gates.latency_p95", "no such field"),
    ('gates = "some"\n' + GOOD, 1, "gates", '"none"'),
    (GOOD + "[health]\nmin_seconds = -1\n", 8, "health.min_seconds", "greater"),
    (GOOD + '[[health.checks]]\ncheck = "mood"\n', 8, "health.checks.0.check", "worker_alive"),
    (GOOD + '[health]\nexec = "reboot"\n', 8, "health.exec", "never commands"),
    (GOOD + '[[health.checks]]\ncheck = "ready"\nhttp = "http://x"\n', 9, "health.checks.0.http", "never commands"),
    (GOOD + '[[health.checks]]\ncheck = "exec"\n', 8, "health.checks.0.check", "worker_alive"),
    (GOOD + '[[health.checks]]\ncheck = "latency"\n', 7, "health.checks.0", "max (milliseconds) or ratio_max"),
    (GOOD + '[[health.checks]]\ncheck = "ready"\nmax = 1\n', 7, "health.checks.0", "ready has no max"),
    (GOOD + '[[health.checks]]\ncheck = "golden"\nlow = 0\n', 7, "health.checks.0", "golden has no low"),
    (GOOD + '[[health.checks]]\ncheck = "memory_growth"\n', 7, "health.checks.0", "needs max (bytes)"),
    (GOOD + '[[health.checks]]\ncheck = "out_of_range"\noutput = "y"\n', 7, "health.checks.0", "low or high"),
    (GOOD + '[[health.checks]]\ncheck = "ready"\n' * 2, 7, "health", "more than once"),
    (GOOD + '[[health.checks]]\ncheck = "ready"\nperiod_s = 0\n', 9, "health.checks.0.period_s", "greater"),
    (GOOD + '[provenance]\n"HTTP" = "x"\n', 8, "provenance.HTTP", "never commands"),
    (GOOD + "[provenance]\ndatasets = [1]\n", 8, "provenance.datasets.0", "string"),
    ("created = 2026-01-31\n" + GOOD, 1, "created", "zone"),
    ("created = 2026-01-31T12:00:00\n" + GOOD, 1, "created", "zone"),
    ('files = [\n  "a.bin",\n  "b/c.bin",\n]\n' + GOOD, 3, "files.1", "pattern"),
    ('files = [\n  "a.bin",\n  "a.bin",\n]\n' + GOOD, 3, "files.1", "twice"),
    (TWO, 4, "variants", "reference"),
    (TWO.replace("int8", "fp32"), 8, "variants.1.name", "twice"),
    (TWO + "reference = true\n[[variants]]\nname='c'\nfile='c'\nreference = true\n", 14, "variants.2.reference", "one"),
    (GOOD + '[golden]\nfile = "g.npz"\n', 7, "golden", "expected outputs or labels"),
    (GOOD + '[golden]\nfile = "g.npz"\nlabels = "l"\n', 9, "golden.labels", "go together"),
    (GOOD + '[golden]\nfile = "g.npz"\nlabels = "l"\nlabel_output = "y"\nbatch = 0\n', 11, "golden.batch", "greater"),
    (GOOD + '[[variants.requires]]\nfact = "gpu.name"\nop = "~"\nvalue = 1\n', 9, "variants.0.requires.0.op", "=="),
    (GOOD + '[signature.outputs."a.b"]\nnon_finite = "maybe"\n', 8, "signature.outputs.a.b.non_finite", "refused"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "field", "word"), BAD)
def test_a_complaint_names_line_and_field(tmp_path: Path, text: str, line: int, field: str, word: str) -> None:
    (tmp_path / "bundle.toml").write_text(text)
    with pytest.raises(Invalid) as refused:
        bundle_toml.load(tmp_path)
    assert refused.value.message.startswith(f"bundle.toml:{line}: ")
    assert (refused.value.details["line"], refused.value.details["field"]) == (line, field)
    assert word in refused.value.message
    assert ("never commands" in refused.value.message) == (refused.value.code == "command_in_manifest")


def test_a_good_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle.toml").write_text(
        "created = 2026-01-31T13:00:00+01:00\n" + GOOD + "[gates]\naccuracy_min = 1\n"
    )
    recipe = bundle_toml.load(tmp_path).recipe
    assert recipe.created == "2026-01-31T12:00:00Z"
    assert bundle_toml.file_names(recipe) == ["model.onnx"]


def test_what_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        bundle_toml.load(tmp_path)
    (tmp_path / "bundle.toml").write_bytes(b'model = "a"\nx = "\xff"\n')
    with pytest.raises(Invalid, match=r"bundle.toml:2: not UTF-8"):
        bundle_toml.load(tmp_path)
    (tmp_path / "bundle.toml").write_bytes(b"#" * (bundle_toml.BUNDLE_TOML_MAX_BYTES + 1))
    with pytest.raises(Invalid, match=r"at most"):
        bundle_toml.load(tmp_path)


FORMS = [
    "# a comment with = and [brackets]",
    "a.b = 1",
    """"c d".'e' = \'\'\'""",
    "x = 1",
    "''' # not a key",
    "[t] # table",
    "k = { m = 1, n = [1,",
    "  2, { o = 3 }], p = '}' }",
    's = "it\\"s"',
    "[[u.v]]",
    'w = """',
    ']"""',
    "[[u.v]]",
    "w = 2024-01-01 10:00:00",
]


def test_lines_are_found_in_every_form_of_toml() -> None:
    text = "\n".join(FORMS)
    lines = toml_lines.locate(text)
    assert lines["a", "b"] == 2
    assert lines["c d", "e"] == 3
    assert (lines["t", "k", "m"], lines["t", "k", "n", 1], lines["t", "k", "n", 2, "o"]) == (7, 8, 8)
    assert (lines["t", "k", "p"], lines["t", "s"]) == (8, 9)
    assert (lines["u", "v", 0, "w"], lines["u", "v", 1, "w"]) == (11, 14)
    assert paths(tomllib.loads(text)) <= set(lines)
    assert lines == toml_lines.locate(text.replace("\n", "\r\n"))


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path for path in [path] if path} | {one for key, below in entries for one in paths(below, (*path, key))}


SCALARS = st.sampled_from(
    ["1", "-2.5", "true", '"a # ] } = b"', "'x'", '"""m\n[y]\n"""', "'''\nq = 1'''", '"\\""', "1e3"]
)
KEYS = st.sampled_from(["a", "b-1", '"c d"', "'e.f'", "g"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda many: "[\n # c ]\n" + ",\n".join(many) + "]")
        | st.dictionaries(KEYS, inner, max_size=2).map(
            lambda table: "{ " + ", ".join(f"{key} = {one}" for key, one in table.items()) + " }"
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_every_key_of_any_document_is_found(top: dict[str, str], rows: list[dict[str, str]]) -> None:
    text = "".join(f"{key} = {one}\n" for key, one in top.items())
    for row in rows:
        text += "[[rows]] # c\n" + "".join(f"{key} = {one}\n" for key, one in row.items())
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = toml_lines.locate(text)
    assert paths(document) <= set(lines)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
