"""Where a passphrase or a PIN comes from: a file, the environment, or a person who is asked.

Rules of the file: a secret is never a command-line argument, never printed, and kept in memory only as long as the
command runs. A new one is asked for twice.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from interlock_shared.errors import Forbidden, Invalid

PASSPHRASE_ENV = "INTERLOCK_PASSPHRASE"  # noqa: S105 - the name of a variable
PIN_ENV = "INTERLOCK_PIN"
LENGTH_MIN = 12  # characters: PKCS#8 files are stretched little (2,048 rounds), so that length is what protects them
TRIES = 3


def _ask(words: str) -> str:
    return getpass.getpass(words, stream=sys.stderr)


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


@dataclass
class Passphrases:
    """Says secrets by the name of what they open. `none`: new keys are written unencrypted, asked for explicitly."""

    file: Path | None = None
    none: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    ask: Callable[[str], str] = _ask
    interactive: Callable[[], bool] = _at_a_terminal
    _opened: list[str] = field(default_factory=list, repr=False)
    _pins: dict[str, str] = field(default_factory=dict, repr=False)
    _new: str | None = field(default=None, repr=False)

    def _given(self) -> str | None:
        """What needs nobody to be asked. Raises Forbidden, Invalid."""
        if self.file is not None:
            try:
                text = self.file.read_text().removesuffix("\n")
            except (OSError, UnicodeDecodeError) as bad:
                raise Forbidden(f"--passphrase-file {self.file}: {bad}", code="no_passphrase") from None
            if not text:
                raise Invalid(f"--passphrase-file {self.file}: it is empty", code="no_passphrase")
            return text
        return self.environment.get(PASSPHRASE_ENV) or None

    def guesses(self, what: str) -> Iterator[str]:
        """What may open a file: what opened another one, what is given, then what a person says.

        Raises Forbidden (`no_passphrase`) where nothing is given and nobody can be asked.
        """
        given = [one for one in (*self._opened, self._new, self._given()) if one]
        yield from dict.fromkeys(given)
        if given and not self.interactive():
            return
        for _ in range(TRIES):
            yield self._asked(f"passphrase of {what}: ", f"give --passphrase-file, or set {PASSPHRASE_ENV}")

    def opened(self, secret: str) -> None:
        """It was right: one passphrase for several keys is asked for once a command."""
        if secret not in self._opened:
            self._opened.append(secret)

    def pin(self, what: str) -> str:
        """The PIN of a token, asked for once a command. Never a passphrase: a few wrong PINs lock a token.

        Raises Forbidden (`no_passphrase`).
        """
        if what not in self._pins:
            given = self.environment.get(PIN_ENV)
            self._pins[what] = given or self._asked(f"PIN of {what}: ", f"set {PIN_ENV}")
        return self._pins[what]

    def _asked(self, words: str, instead: str) -> str:
        if not self.interactive():
            raise Forbidden(
                f"{words.removesuffix(': ')} is needed, and there is no terminal to ask at: {instead}",
                code="no_passphrase",
            )
        return self.ask(words)

    def new(self) -> bytes | None:
        """The passphrase of keys that are made now, the same for all of one command; None: they are not encrypted.

        Raises Forbidden (`no_passphrase`), Invalid (`weak_passphrase`).
        """
        if self.none:
            return None
        if self._new is None:
            self._new = self._given() or self._twice()
        if len(self._new) < LENGTH_MIN:
            short, self._new = len(self._new), None
            raise Invalid(
                f"the passphrase has {short} characters, {LENGTH_MIN} are the least; several words are good ones",
                code="weak_passphrase",
            )
        return self._new.encode()

    def _twice(self) -> str:
        if not self.interactive():
            raise Forbidden(
                f"new keys need a passphrase, and there is no terminal to ask at: give --passphrase-file, set "
                f"{PASSPHRASE_ENV}, or say --no-passphrase to write them unencrypted",
                code="no_passphrase",
            )
        for _ in range(TRIES):
            first = self.ask(f"passphrase for the new keys (at least {LENGTH_MIN} characters): ")
            if self.ask("the same again: ") == first:
                return first
            sys.stderr.write("they differ\n")
        raise Forbidden("no passphrase was given twice the same", code="no_passphrase")
