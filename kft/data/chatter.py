"""Keeps other libraries from talking while kft works."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

_TALKERS = ("absl", "datasets", "fsspec", "huggingface_hub", "tensorflow", "urllib3.connectionpool")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Holds back what other libraries print, log and warn of; what they raise comes through."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def one_line(error: BaseException, most: int = 300) -> str:
    """Returns what an error of another library says, as one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text[:most].rstrip(".")
