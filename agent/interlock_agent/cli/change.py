"""`install`, `rollback`, `forgive`, `health`: what changes a device by hand."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from interlock_agent.cli import output
from interlock_agent.control_client import ask
from interlock_shared.errors import InterlockError, Invalid


def install(
    file: Annotated[str, typer.Argument(help="A .bundle that was exported from the server; - reads a pipe.")],
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Install a release from a file, through the same trust and the same gate as over the network.

    The file is read once; it carries its signatures and a permit. The server learns of it when there is a link.

    Example: interlock-agent install /media/usb/detector-1.4.0.bundle
    """
    socket = output.load(config).device.run_dir / "agent.sock"
    try:
        source = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115  # closed by the end of the process
    except OSError as bad:
        output.fail(Invalid(f"{file}: {bad.strerror}", code="io", field="file"), as_json)
    try:
        answer = ask(socket, "install", descriptor=source.fileno(), progress=output.progress(as_json))
    except InterlockError as error:
        output.fail(error, as_json)
    output.end(answer, as_json)


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
