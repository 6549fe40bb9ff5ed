"""Keeps what other libraries print away from what kft prints."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_TALKERS = ("absl", "jax", "tensorflow", "keras_hub", "h5py", "datasets", "huggingface_hub")


def hush() -> None:
    """Turns down the logs and warnings of other libraries for the rest of this process."""
    # ERROR lines are among these: TensorFlow writes them for a GPU it does without; what matters is raised as well.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Makes `sys.stdout` the only way to this process's standard output; descriptor 1 leads to standard error.

    TensorFlow and others write to descriptor 1 from C++, where no Python object can be put in the way.
    """
    before = sys.stdout
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a process may be started without them
        yield
        return
    terminal = os.isatty(kept)
    stream = io.TextIOWrapper(
        os.fdopen(kept, "wb"), encoding=before.encoding, errors="backslashreplace", line_buffering=terminal
    )
    sys.stdout = stream
    try:
        yield
    finally:
        _flush(stream)
        sys.stdout = before


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Sends what is printed in the block to standard error, without the lines TensorFlow writes before its log is set up."""
    with contextlib.redirect_stdout(sys.stderr), _without_start_lines():
        yield


@contextlib.contextmanager
def _without_start_lines() -> Iterator[None]:
    """Passes descriptor 2 through `start_lines.py`; Python's own `sys.stderr` keeps the straight way.

    The filter is a process of its own, so that the last words of a process that crashes still come through.
    """
    wanted = os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1") or "KFT_DEBUG" in os.environ
    if wanted or not _is_descriptor(sys.stderr, 2):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    straight = io.TextIOWrapper(
        os.fdopen(os.dup(2), "wb"), encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True
    )
    program = str(Path(__file__).with_name("start_lines.py"))
    with subprocess.Popen(
        [sys.executable, "-I", "-S", program], stdin=subprocess.PIPE, start_new_session=True
    ) as filter_:
        assert filter_.stdin is not None
        os.dup2(filter_.stdin.fileno(), 2)
        filter_.stdin.close()
        try:
            with contextlib.redirect_stderr(straight), contextlib.redirect_stdout(straight):
                yield
        finally:
            straight.close()
            os.dup2(kept, 2)
            os.close(kept)
            with contextlib.suppress(subprocess.TimeoutExpired):
                filter_.wait(timeout=2)
            if filter_.poll() is None:  # a child still holds the pipe
                filter_.terminate()


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False


def _flush(stream: TextIO) -> None:
    """Flushes a stream for the last time; what cannot be written was reported before, or nobody reads it any more."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
