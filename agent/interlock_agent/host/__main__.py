"""`interlock-host`: serves models to the applications on this device. It obeys the agent, over a Unix socket.

Rules of the file:
- Small and dull: the standard library alone, nothing is imported that a subcommand does not need.
- Exit codes: 0 done, 1 it failed, 2 the command line or the configuration is wrong, 3 another host runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from interlock_agent import __version__
from interlock_agent.host import config, messages

HELP = """\
interlock-host serves the models of this device over the Open Inference
Protocol v2.

It listens on one address a model (the owner names it in the agent's
configuration), owns every process that serves, swaps releases without losing a
request, and takes back a release whose worker dies. What to serve is the agent's
decision: `interlock-agent status` tells you more. Applications ask it like this:

  curl http://127.0.0.1:8500/v2/models/detector

A host that was killed or restarted serves the confirmed releases again by
itself. Exit codes: 0 done, 1 failed, 2 asked wrongly, 3 another host runs.
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry of the console script; the exit code."""
    parser = argparse.ArgumentParser(
        "interlock-host", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"interlock-host {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="run | status")
    run = verbs.add_parser("run", help="serve until SIGTERM (systemd starts it so)")
    status = verbs.add_parser("status", help="what serves now, on which address")
    status.add_argument("--json", action="store_true", help="the whole status, for programs")
    for verb in (run, status):
        verb.add_argument(
            "--config",
            type=Path,
            help=f"settings in TOML (default: $INTERLOCK_HOST_CONFIG, {config.DEFAULT_PATH} if there)",
        )
    chosen = parser.parse_args(arguments)
    if chosen.verb is None:
        parser.print_help()
        return 2
    try:
        settings = config.read(chosen.config)
    except (OSError, ValueError) as wrong:
        print(f"interlock-host: {wrong}", file=sys.stderr)
        return 2
    return _run(settings) if chosen.verb == "run" else _status(settings, chosen.json)


def _run(settings: config.Settings) -> int:
    from interlock_agent.host import manager, service

    # systemd's journal has the time already.
    form = "level=%(levelname)s %(message)s"
    if "JOURNAL_STREAM" not in os.environ:
        form = "time=%(asctime)s " + form
    logging.basicConfig(stream=sys.stderr, format=form, level=settings.log_level.upper())
    try:
        asyncio.run(service.serve(settings, manager.Kept()))
    except service.AnotherHost as another:
        print(f"interlock-host: {another}", file=sys.stderr)
        return 3
    except OSError as failure:
        where = f"{failure.filename}: {failure.strerror} (the folders are state_dir and run_dir of --config)"
        print(f"interlock-host: {where if failure.filename else failure}", file=sys.stderr)
        return 1
    return 0


async def _ask(path: str) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        mine = messages.hello(__version__, "tool")
        writer.write(messages.encode(mine))
        messages.agree(mine, await messages.read_frame(reader))
        writer.write(messages.encode(messages.to_request(1, messages.Status())))
        while True:
            answer = await messages.read_frame(reader)
            if answer.get("id") == 1:
                return dict(answer["ok"])
    finally:
        writer.close()


def _status(settings: config.Settings, as_json: bool) -> int:
    try:
        found = asyncio.run(asyncio.wait_for(_ask(settings.control), 10))
    except (OSError, ValueError, EOFError, asyncio.TimeoutError) as failure:
        gone = isinstance(failure, (FileNotFoundError, ConnectionRefusedError))
        hint = "start it (`systemctl start interlock-host`), or name its settings with --config" if gone else failure
        print(f"interlock-host: no host answers on {settings.control}: {hint}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    for unit in found["units"]:
        state = (
            f"trial of generation {unit['trial']}" if unit["trial"] else "confirmed" if unit["live"] else "not serving"
        )
        print(f"{unit['unit']:<20} {unit['address']:<24} {unit['live'] or '-':<28} {state}")
    if not found["units"]:
        print("no unit is configured; the agent does it when it starts")
    for broken in found["host"].get("broken", ()):
        print(f"set aside: {broken}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
