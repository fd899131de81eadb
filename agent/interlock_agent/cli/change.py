"""`install`, `rollback`, `forgive`, `health`: what changes a device by hand."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from interlock_agent.cli import exits, output
from interlock_agent.control_client import ask
from interlock_shared.errors import InterlockError, Invalid


def install(
    file: Annotated[str, typer.Argument(help="A .bundle that was exported from the server; - reads a pipe.")],
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Install a release from a file, through the same trust and the same gate as over the network.

    The file is read once; it carries its signatures and a permit. The server learns of it when there is a link.

    Exit codes: 0 confirmed, 1 the gate or the trial said no, 3 not now, 10 another fleet's file, 11 expired, 12 no
    permit for this device, 13 older than what is trusted here, 14 corrupted, 15 revoked, 16 forbidden here, 17 not
    genuine, 18 no bundle.

    Example: interlock-agent install /media/usb/detector-1.4.0.bundle
    """
    socket = output.load(config).device.run_dir / "agent.sock"
    try:
        with _opened(file) as source:
            answer = ask(socket, "install", descriptor=source.fileno(), progress=output.progress(as_json))
    except InterlockError as error:
        output.fail(error, as_json, exits.of_error(error))
    output.end(answer, as_json, exits.of_answer(answer["phase"], answer["reason"]))


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The file of that name, or standard input for `-`. Raises Invalid (`io`)."""
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115  # it is below
    except OSError as bad:
        raise Invalid(f"{file}: {bad.strerror}", code="io", field="file") from None
    with source:
        yield source


def rollback(
    model: Annotated[str, typer.Argument(help="The model.")],
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Go back: out of a trial at once, else to the previous confirmed release in the spare slot. Needs no network.

    What is left is not tried again until `interlock-agent forgive`.

    Example: interlock-agent rollback detector
    """
    socket = output.load(config).device.run_dir / "agent.sock"
    try:
        answer = ask(socket, "rollback", unit=model, progress=output.progress(as_json))
    except InterlockError as error:
        output.fail(error, as_json)
    if answer["phase"] == "reverted":  # out of a trial: that was the wish
        answer["phase"] = "confirmed"
    output.end(answer, as_json)


def unpin(
    model: Annotated[str, typer.Argument(help="The model.")],
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Let the server replace what a file brought, whatever the policy: what it wants now is taken up.

    Example: interlock-agent unpin detector
    """
    answer = output.ask(config, "unpin", as_json, unit=model)
    if as_json:
        output.print_json(answer)
        return
    output.out.print(f"{answer['unit']} {answer['version']} is the server's to replace")


class Says(str, Enum):
    """How an application says that the model is."""

    OK = "ok"
    BAD = "bad"


def health(
    model: Annotated[str, typer.Argument(help="The model.")],
    says: Annotated[Says, typer.Argument(help="How it is.")],
    message: Annotated[str, typer.Option(help="Why, for people.")] = "",
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """The application's word about the release that serves: `bad` takes it back, in its trial and after it.

    A trial waits for `ok` where the owner has set `health.application = "required"`. The word holds until the next one,
    until another release serves, or nothing does, and until the agent ends. Heard from root and the agent's user.

    Example: interlock-agent health detector bad --message "no detections for 60 s"
    """
    answer = output.ask(config, "health", as_json, unit=model, healthy=says is Says.OK, message=message)
    if as_json:
        output.print_json(answer)
        return
    output.out.print(f"{answer['unit']} ({answer['phase']}): {says.value}")


def forgive(
    payload: Annotated[str, typer.Argument(help="Payload SHA-256, as `status --json` shows it.")],
    config: output.ConfigPath = None,
) -> None:
    """Let a payload be tried again that is in quarantine, or of which a person is to decide (`waiting: operator`).

    Example: interlock-agent forgive 3f5a…
    """
    answer = output.ask(config, "forgive", payload_sha256=payload)
    output.out.print(f"{answer['forgiven']} entries removed")
    for unit in answer.get("woken", ()):
        output.out.print(f"{unit}: tried again now")
