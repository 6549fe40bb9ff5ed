"""The group of commands: finds each one when it is asked for, and turns what it raises into a line and an exit code."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from kft import __version__
from kft.cli.failure import report
from kft.errors import unknown

COMMANDS = ("run", "check", "plan", "init", "list", "evaluate", "predict", "export", "doctor", "parity", "bench")


class Commands(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Returns a command, or None if there is none of that name."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kft.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that the first argument names."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(unknown("command", args[0], COMMANDS), ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Runs a command and exits: 0, 1 for a failed run and for what nobody foresaw, 2 for bad input."""
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        extra["standalone_mode"] = False
        try:
            code = super().main(arguments, *rest, **extra)
            sys.stdout.flush()
        except Exception as error:
            code = report(error, as_json=asked("--json", arguments), debug=debugging(arguments))
        except KeyboardInterrupt:
            code = report(click.Abort(), as_json=asked("--json", arguments), debug=False)
        sys.exit(code or 0)


def asked(option: str, arguments: Sequence[str]) -> bool:
    """Says whether an option stands among the arguments, also where they are too broken to be parsed."""
    return option in itertools.takewhile(lambda argument: argument != "--", arguments)


def debugging(arguments: Sequence[str]) -> bool:
    """Says whether tracebacks are wanted, by --debug or KFT_DEBUG=1."""
    return asked("--debug", arguments) or os.environ.get("KFT_DEBUG", "0") not in ("", "0")


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kft")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error, and other tools' logs."
)
def ROOT() -> None:
    """Fine-tunes pretrained Keras 3 models: one recipe on TensorFlow, PyTorch and JAX.

    `kft run` with nothing else trains the quickstart; `kft init text_classification` prints a recipe to edit.
    """
