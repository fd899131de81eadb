"""What goes wrong in a worker, in two kinds: the client's request, or the release itself."""

from __future__ import annotations


class BadRequest(Exception):
    """The client's fault: an HTTP status, a code for machines, a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class LoadError(Exception):
    """The release cannot be opened here. `code`: `load_failed`, `corrupt`, `no_golden`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message
