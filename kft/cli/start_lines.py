"""Copies standard input to standard output's sister, without TensorFlow's start lines; runs as a program, without kft."""

from __future__ import annotations

import os
import re
import sys

START_LINE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)|[IW]\d{4} \d\d:\d\d:\d+\.\d+ +\d+ \S+:\d+\]"
    rb"|E\d{4} .*cuda_platform\.cc.*cuInit"  # on every machine without a GPU's driver
)


def copy(source: int, sink: int) -> None:
    """Copies lines from one descriptor to another until the end, those of TensorFlow's start left out.

    What does not end in a line break is copied when the source ends.
    """
    rest = b""
    while chunk := os.read(source, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            _pass(line + b"\n", sink)
    _pass(rest, sink)


def _pass(line: bytes, sink: int) -> None:
    if line and not START_LINE.match(line):
        os.write(sink, line)


if __name__ == "__main__":
    copy(sys.stdin.fileno(), sys.stderr.fileno())
