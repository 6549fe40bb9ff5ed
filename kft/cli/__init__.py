"""The command line: it prints, the rest of kft returns values."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command that this process was started with, and exits with its code."""
    from kft.cli import streams
    from kft.cli.group import ROOT, debugging

    arguments = sys.argv[1:]
    if debugging(arguments):
        os.environ["KFT_DEBUG"] = "1"
    else:
        streams.hush()
    with streams.own():
        ROOT.main(arguments, prog_name="kft")
