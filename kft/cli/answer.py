"""How the result of a command reaches standard output: as one JSON object, or as text for a person."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from kft.cli import streams


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        values: the JSON object.
        show: prints it for a person.
    """

    values: Mapping[str, Any]
    show: Callable[[], None]


def answers(function: Callable[..., Answer]) -> Callable[..., None]:
    """Gives a command --json and --debug, and prints the answer that it returns when all its work is done."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
    @click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
    @functools.wraps(function)
    def command(*arguments: Any, as_json: bool, **options: Any) -> None:
        with streams.working():
            answer = function(*arguments, **options)
        if as_json:
            click.echo(as_text(answer.values))
        else:
            answer.show()

    return command


def as_text(values: Any) -> str:
    """Returns JSON of one line; numbers that JSON has no word for, as nan, become null."""
    return json.dumps(_plain(values), ensure_ascii=False, allow_nan=False, default=str)


def _plain(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(name): _plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
