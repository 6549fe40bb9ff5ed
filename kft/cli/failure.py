"""What the person at the keyboard reads when a command fails."""

from __future__ import annotations

import errno
import json
import sys
import traceback

import click

from kft.errors import KftError

LONGEST = 400


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Writes an error as one line to standard error, and as JSON to standard output where that was asked for.

    Args:
        error: what a command raised.
        as_json: whether standard output holds JSON.
        debug: whether the traceback is wanted too.

    Returns:
        The exit code.
    """
    message, code = _explained(error)
    if debug:
        traceback.print_exception(error)
    print(f"kft: {message}", file=sys.stderr, flush=True)
    if as_json and not _of_the_disk(error):
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False), flush=True)
    return code


def _explained(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KftError):
        return str(error), error.exit_code
    if isinstance(error, click.Abort):
        return "Interrupted.", 1
    if isinstance(error, click.UsageError):
        return _usage(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _one_line(error.format_message()), error.exit_code
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or isinstance(error, PermissionError)):
        return _refused(error), 2
    line = _one_line(str(error))
    return f"unexpected {type(error).__name__}: {line}; run with --debug for the traceback", 1


def _usage(error: click.UsageError) -> str:
    place = error.ctx.command_path if error.ctx else "kft"
    return f"{_one_line(error.format_message())} Type: {place} --help"


def _refused(error: OSError) -> str:
    place = f"'{error.filename}'" if error.filename else "the output"
    if error.errno == errno.ENOSPC:
        return f"The disk is full: cannot write to {place}. Free some space or write elsewhere."
    return f"Not allowed to use {place}: {error.strerror or error}. Change its permissions or give another place."


def _of_the_disk(error: BaseException) -> bool:
    """Says whether standard output itself may be what cannot be written."""
    return isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."
