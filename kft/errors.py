"""What kft says when it cannot go on: one line for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KftError(Exception):
    """Says in one line what was received, where, what is allowed and what to type next.

    Attributes:
        exit_code: the exit code of the command line, 2 for bad input and 1 for a run that failed.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RecipeError(KftError):
    """A recipe, or a `key=value` beside it, cannot be used."""


class DataError(KftError):
    """A data source, a column, a row or a label cannot be used."""


class ModelError(KftError):
    """A model handle or its files cannot be used."""


class BackendError(KftError):
    """A backend is missing, or another one is active already."""


class FetchError(KftError):
    """A file could not be fetched, or is not the one that was asked for."""


class RunFolderError(KftError):
    """A run folder is missing, incomplete, in the way or cannot be written."""


class RunFailed(KftError):
    """A run started and did not reach its end."""

    exit_code = 1


def nearest(received: str, allowed: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `allowed`, or an empty string."""
    found = difflib.get_close_matches(received, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """Returns names as `a, b, c`, at most `most` of them and a count of the rest."""
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(every[:most]) or "none") + rest


def unknown(kind: str, received: str, allowed: Iterable[str], hint: str = "") -> str:
    """Returns the sentence for a name that is not in a list of names."""
    every = sorted(allowed)
    return f"Unknown {kind} '{received}'.{nearest(received, every)} Available: {listed(every)}.{hint and ' ' + hint}"
