"""What commands share: options, words for people, documents for programs, the connection to the server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interlock_server.publisher import settings
from interlock_server.publisher.client import Api
from interlock_shared.errors import Invalid

T = TypeVar("T")

Server = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The server; else $INTERLOCK_SERVER, `interlock login`.")
]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="A bearer token; else $INTERLOCK_TOKEN, the login's.")
]
Keys = Annotated[
    Path | None, typer.Option("--keys", metavar="DIR", help="The folder of keys; else $INTERLOCK_KEYS, the login's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print a document for programs.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many, newest first.")]

ROW_WIDTH = 4096  # a row is one line, also on a narrow terminal: ids and reasons stay whole, and can be copied


def group(words: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        help=words, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False
    )


def console() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else ROW_WIDTH, highlight=False, soft_wrap=True)


def say(*lines: str) -> None:
    """Lines for people. What came from outside cannot move the cursor."""
    out = console()
    for line in lines:
        out.print(Text(clean(line)))


def clean(text: str) -> str:
    """The text without control characters: names and reasons come from devices."""
    return "".join(one if one.isprintable() or one in "\n\t" else "�" for one in text)


def write(target: str, text: str) -> None:
    """Text into a file, or to standard output for `-`. Raises Invalid."""
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as bad:
        raise Invalid(f"{target}: {bad.strerror}", field="--svg", code="io") from None


def show_json(document: Any) -> None:
    """A document for programs."""
    sys.stdout.write(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def show_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], empty: str, optional: Iterable[str] = ()) -> None:
    """Rows for people; `empty` is said when there are none. An `optional` column is left out when no row has it."""
    known = [[clean("-" if cell is None or cell == "" else str(cell)) for cell in row] for row in rows]
    if not known:
        say(empty)
        return
    names = list(columns)
    kept = [n for n, name in enumerate(names) if name not in optional or any(row[n] != "-" for row in known)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for n in kept:
        table.add_column(names[n], overflow="fold")
    for row in known:
        table.add_row(*(Text(row[n]) for n in kept))
    out = Console(width=ROW_WIDTH, height=1, highlight=False)  # without a height a dumb terminal is 80 wide
    with out.capture() as captured:
        out.print(table)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def show_facts(facts: Mapping[str, Any]) -> None:
    """Name and value, one a line; what is not known is left out."""
    width = max((len(name) for name in facts), default=0)
    say(*(f"{name:<{width}}  {value}" for name, value in facts.items() if value is not None))


def when(at: str | None) -> str | None:
    """A time for people, to the second; documents have all of it."""
    return at[:19] + "Z" if at else at


def size(count: int) -> str:
    """Bytes for people."""
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"


def now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


def with_api(server: str | None, token: str | None, work: Callable[[Api], Awaitable[T]]) -> T:
    """Run `work` against the server. Raises InterlockError."""
    known = settings.load(server, token)
    ca = known.authority()

    async def run() -> T:
        async with Api(known.need("server"), known.need("token"), ca) as api:
            return await work(api)

    return asyncio.run(run())


def fetch(server: str | None, token: str | None, route: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One document from the server. Raises InterlockError."""
    return with_api(server, token, lambda api: api.get(route, query))


def show(document: Any, as_json: bool, words: Callable[[Any], None]) -> None:
    """The document for programs, or `words` for people."""
    if as_json:
        show_json(document)
    else:
        words(document)


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` options. Raises Invalid."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name or not sign or not value:
            instead = "all, device=ID or LABEL=VALUE" if option == "--to" else "NAME=VALUE"
            raise Invalid(f"{option}: {text!r} is not {instead}", field=option)
        found[name] = value
    return found


def show_line(document: Any) -> None:
    """A document on one line, at once: for a stream of them."""
    sys.stdout.write(json.dumps(document, sort_keys=True, ensure_ascii=False) + "\n")
    sys.stdout.flush()
