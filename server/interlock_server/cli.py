"""`interlock`: the release engineer's and the fleet admin's command. Groups are in publisher/cli/.

Exit codes: 0 it is so, or it is done; 1 refused or failed; 2 asked wrongly; 3 not now, the same may succeed later.
An error is one line on standard error, `error[code]: message`; with `--json` it is a document on standard output too.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from interlock_server import __version__
from interlock_server.publisher.cli import bundle, devices, fleet, joining, keyring, output, releases, root
from interlock_server.publisher.settings import CA_ENV
from interlock_shared.errors import InterlockError, Invalid, Later

DONE, REFUSED, USAGE, LATER = 0, 1, 2, 3
DEBUG_ENV = "INTERLOCK_DEBUG"  # a developer's word: let a defect show its traceback

app = output.group(
    "Build, sign and publish releases of AI models; roll them out; see what devices say.\n\n"
    "Start with [bold]interlock bundle init[/bold] beside a model. Server, token and keys are options, "
    "$INTERLOCK_SERVER, $INTERLOCK_TOKEN and $INTERLOCK_KEYS, or what [bold]interlock login[/bold] stored.\n\n"
    "Exit codes: 0 done, 1 refused or failed, 2 asked wrongly, 3 not now (try again)."
)
app.add_typer(bundle.app, name="bundle")
app.add_typer(keyring.app, name="keys")
app.add_typer(root.app, name="root")
app.command("publish")(keyring.publish)
app.command("login")(keyring.login)
app.add_typer(releases.app, name="release")
app.add_typer(fleet.rollouts, name="rollout")
for name, command in joining.COMMANDS.items():
    devices.app.command(name)(command)
app.add_typer(devices.app, name="device")
app.command("events")(devices.events)


def _version(wanted: bool) -> None:
    if wanted:
        output.say(f"interlock {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and exit.")
    ] = False,
    ca: Annotated[
        str | None,
        typer.Option("--ca", metavar="FILE", help="The authority of the server's certificate; else $INTERLOCK_CA."),
    ] = None,
) -> None:
    """The options before a command; the help is the group's."""
    if ca is not None:
        os.environ[CA_ENV] = ca  # every command reads it where it reads the others


def _complain(error: InterlockError, as_json: bool) -> int:
    sys.stderr.write(output.clean(f"error[{error.code}]: {error.message}").replace("\n", " ") + "\n")
    if as_json:
        output.show_json({"error": error.document()})
    asked_wrongly = str(error.details.get("field", "")).startswith("--")  # the value of an option
    return USAGE if asked_wrongly else LATER if isinstance(error, Later) else REFUSED


def main(arguments: list[str] | None = None) -> int:
    """The console script: runs one command, gives its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=given, prog_name="interlock")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else REFUSED
    except InterlockError as error:
        return _complain(error, "--json" in given)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has gone: nothing is left to be said
        return REFUSED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(Invalid(f"{where}{error.strerror or error}", code="system"), "--json" in given)
    except Exception as error:
        if os.environ.get(DEBUG_ENV):
            raise
        what = f"{type(error).__name__}: {error} (a defect; {DEBUG_ENV}=1 shows where)"
        return _complain(InterlockError(what, code="defect"), "--json" in given)
    return DONE
