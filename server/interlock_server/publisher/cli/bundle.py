"""`interlock bundle …`: init, build, show, verify, check; export and permit are in permits.py."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from interlock_server.publisher import (
    archives,
    build,
    bundle_toml,
    dry_run,
    export,
    golden,
    payload,
    template,
)
from interlock_server.publisher.cli import output, permits
from interlock_server.publisher.permits import describe
from interlock_server.publisher.progress import Bar
from interlock_shared.archive import Head, Reader
from interlock_shared.errors import Invalid
from interlock_shared.segments import Transport

app = output.group("Make, read and check bundles: a model with everything a device needs to judge it.")

Bundle = Annotated[Path, typer.Argument(metavar="FILE", help="A .bundle file; - reads a pipe.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the model.")] = Path(),
    model_file: Annotated[
        str | None, typer.Option("--model-file", metavar="FILE", help="The ONNX file; needed when there are several.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="What applications ask for; else the folder's name."),
    ] = None,
    version: Annotated[str, typer.Option("--version", metavar="V", help="The release's version.")] = "1.0.0",
) -> None:
    """Write a commented [bold]bundle.toml[/bold] beside a model.

    Example: interlock bundle init detector --model-file model.onnx --model detector --version 1.4.0
    """
    path = template.write(folder, model_file, model, version)
    output.say(f"wrote {path}", f"next: look at it, then  interlock bundle build {folder}")


@app.command("build")
def build_command(
    where: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with a bundle.toml, or that file.")] = Path(),
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: MODEL-VERSION.bundle, here.")
    ] = None,
    check_golden: Annotated[
        bool, typer.Option("--check-golden", help="Run the reference over the golden data (needs onnxruntime).")
    ] = False,
    as_json: output.Json = False,
) -> None:
    """Make a bundle. The same folder gives the same bytes.

    Example: interlock bundle build detector -o detector-1.4.0.bundle
    """
    source = bundle_toml.load(where)
    with Bar("hashing", build.total_bytes(source)) as bar:
        made = build.build(source, bar.advance)
    shares = {}
    if check_golden:
        if made.manifest.golden is None:
            raise Invalid("there is no golden data to check", code="no_golden", field="golden")
        shares = golden.compare(source, made.manifest.golden, made.manifest.reference.file)
    target = out or Path(f"{made.manifest.model}-{made.manifest.version}.bundle")
    with Bar("writing", made.manifest.payload_size) as bar, archives.new_file(target) as file:
        count = archives.write(file, Head(made.data, made.manifest), _watched(made, bar))
    document = {**export.summary(made.manifest, made.data), "file": str(target), "bytes": count, "golden": shares}
    if as_json:
        output.show_json(document)
        return
    output.say(f"wrote {target}: {made.manifest.release}, {output.size(count)}")
    output.show_facts(
        {
            "manifest": document["manifest_sha256"],
            "payload": document["payload_sha256"],
            "golden": f"{made.items} items" if made.items else "none: give some, or devices can only measure speed",
            **{name: f"{share:.2%}" for name, share in shares.items()},
        }
    )


def _watched(made: build.Built, bar: Bar) -> Iterator[Transport]:
    for one in payload.travel(made.folder, made.manifest):
        bar.advance(one.size)
        yield one


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with payload.open_plain(file) as stream:
        yield stream


@app.command()
def show(file: Bundle, as_json: output.Json = False) -> None:
    """Say what a bundle holds, without checking its segments or its signatures.

    Example: interlock bundle show detector-1.4.0.bundle
    """
    with _reading(file) as stream:
        head = Reader(stream).head()
    document = {**export.summary(head.manifest, head.data), "published": bool(head.metadata)}
    if as_json:
        output.show_json(document)
        return
    found = head.manifest
    output.show_facts(
        {
            "release": found.release,
            "created": found.created,
            "published": "yes: it carries metadata and a permit" if head.metadata else "no",
            "payload": f"{output.size(found.payload_size)} in {len(found.segments())} segments",
            "manifest": document["manifest_sha256"],
            "payload digest": document["payload_sha256"],
            "needs agent": found.min_agent,
            "gates": found.gates if isinstance(found.gates, str) else _limits(found.gates.model_dump()),
            "trial": f"{found.health.min_seconds:g} s and {found.health.min_requests} requests",
            "golden": found.golden.file if found.golden else "none",
            "labels": len(found.signature.labels) if found.signature.labels else None,
        }
    )
    output.say("")
    tensors = [("input", one) for one in found.signature.inputs] + [("output", one) for one in found.signature.outputs]
    rows = [(side, one.name, one.dtype, list(one.shape), one.non_finite) for side, one in tensors]
    output.show_table(("", "tensor", "type", "shape", "NaN, Inf"), rows, "")
    output.say("")
    output.show_table(("file", "size", "sha256"), [(f.name, output.size(f.size), f.sha256) for f in found.files], "")


def _limits(limits: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)


@app.command()
def verify(
    file: Bundle,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="root.json", help="The root to trust; without it the bundle's own.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Check every byte of a bundle in one pass: segments, signatures from the root on, permit.

    Example: interlock bundle verify detector-1.4.0.bundle --root keys/root.json
    """
    trusted = None
    if root is not None:
        with payload.open_plain(root) as stream:
            trusted = stream.read(2**22)
    with _reading(file) as stream, Bar("verifying", file.stat().st_size if file.is_file() else 0) as bar:
        found = export.check(stream, trusted, output.now(), bar.advance)
    document = {
        "release": found.manifest.release,
        "manifest_sha256": found.manifest_sha256,
        "segments": found.segments,
        "bytes": found.bytes,
        "signed": found.signed,
        "root_sha256": found.root_sha256,
        "root": "given" if root else "from the bundle" if found.signed else None,
        "permit": found.permit.model_dump(mode="json", by_alias=True) if found.permit else None,
    }
    if as_json:
        output.show_json(document)
        return
    output.say(f"{found.manifest.release}: {found.segments} segments, {output.size(found.bytes)}: every byte is right")
    if found.permit is None:
        output.say("not published: it carries no signatures, no device takes it")
        return
    output.say(
        f"signed, from root {found.root_sha256}",
        f"permit for {describe(found.permit)}, until {output.when(found.permit.expires_at)}",
    )
    if root is None:
        output.say("that root came from the bundle itself: compare its digest, or give --root")


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .bundle, or a folder with a bundle.toml.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="BUNDLE", help="The incumbent: the same forms.")
    ] = None,
    svg: Annotated[
        str | None, typer.Option("--svg", metavar="FILE", help="Draw the latencies into this file; - is a pipe.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A device's agent.toml: providers, limits.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Judge a bundle on this machine as a device's gate would: runs [bold]interlock-agent gate --dry-run[/bold].

    Exit codes: 0 accept, 1 reject, 2 asked wrongly, 3 this machine cannot tell, 4 inconclusive.

    Example: interlock bundle check detector-1.4.0.bundle --against detector-1.3.0.bundle
    """
    raise typer.Exit(dry_run.run(bundle, against, svg, config, as_json))


app.command("export")(permits.export_command)
app.command("permit")(permits.permit_command)
