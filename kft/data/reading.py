"""Reads text files, whole or line by line, and says where one stops being text."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from kft.errors import DataError

PIECE = 1 << 20  # characters that are looked through at a time
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


def read_text(file: Path, encoding: str) -> str:
    """Reads a file in an encoding; a byte order mark at its beginning is dropped, line ends stay as they are.

    Raises:
        DataError: if the file cannot be read, is in another encoding, or holds a NUL.
    """
    text = decode(_content(file), encoding, str(file))
    if "\0" in text:
        raise DataError(_nul(file, text.count("\n", 0, text.index("\0")) + 1))
    return text


def read_lines(file: Path, encoding: str, newline: Literal["", "\n"]) -> Iterator[str]:
    """Reads a file as `read_text` does, and yields its lines with their ends; the text is never whole in memory.

    The whole file is looked through before this returns, so that what is wrong with it is said first.

    Args:
        file: the file.
        encoding: its encoding, or `auto`.
        newline: "" for lines that end in `\\n`, `\\r\\n` or `\\r`, "\\n" for `\\n` alone.

    Raises:
        DataError: if the file cannot be read, is in another encoding, or holds a NUL.
    """
    content = _content(file)
    encoding = _codec(content, encoding)
    line = 1
    try:
        for piece in _pieces(content, encoding):
            if "\0" in piece:
                raise DataError(_nul(file, line + piece.count("\n", 0, piece.index("\0"))))
            line += piece.count("\n")
    except UnicodeDecodeError:
        decode(content, encoding, str(file))  # which says where
        raise
    return _text(content, encoding, newline)


def _text(content: bytes, encoding: str, newline: str) -> io.TextIOWrapper:
    name = codecs.lookup(encoding).name
    if name == "utf-8":
        name = "utf-8-sig"
    elif name in ("utf-16", "utf-32") and not content.startswith(_MARKS):
        name += "-le" if sys.byteorder == "little" else "-be"  # a stream, unlike a string, insists on the mark
    return io.TextIOWrapper(io.BytesIO(content), encoding=name, newline=newline)


def _pieces(content: bytes, encoding: str) -> Iterator[str]:
    text = _text(content, encoding, "")
    while piece := text.read(PIECE):
        yield piece


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read '{file}': {error.strerror or error}.") from None


def _nul(file: Path, line: int) -> str:
    return (
        f"{file} line {line}: a NUL character, which no text has. Give a text file; if it is one in UTF-16, type "
        "data.encoding=utf-16."
    )


def decode(content: bytes, encoding: str, origin: str) -> str:
    """Decodes bytes; `auto` is UTF-8 and, for what is not, Windows-1252.

    Raises:
        DataError: with the line and the byte that the encoding does not allow, and what to type.
    """
    encoding = _codec(content, encoding)
    name = codecs.lookup(encoding).name
    try:
        return content.decode("utf-8-sig" if name == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        start = error.start + (3 if name == "utf-8" and content.startswith(codecs.BOM_UTF8) else 0)
        line = content.count(b"\n", 0, start) + 1
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise DataError(
            f"{origin} line {line}: byte {start} (0x{content[start]:02x}) is not {encoding}. "
            f"Type the file's own encoding, as in data.encoding={'utf-16' if wide else 'latin-1'}, or data.encoding=auto."
        ) from None


def _codec(content: bytes, encoding: str) -> str:
    if encoding != "auto":
        return encoding
    try:
        for _ in _pieces(content, "utf-8"):
            pass
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text without their ends, `\\n` or `\\r\\n`; other line separators are part of a line."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def column(name: str, values: list[Any], where: Any) -> Any:
    """Returns values as an Arrow array.

    Args:
        name: what the column is called.
        values: the values of all rows; None is a missing one.
        where: from a row's number to its place, for the message.

    Raises:
        DataError: if the values are of kinds that do not go together; names the first row that differs.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError) as error:
        kinds = [(row, type(value).__name__) for row, value in enumerate(values) if value is not None]
        other = next(((row, kind) for row, kind in kinds if kind != kinds[0][1]), None)
        if other is None:
            raise DataError(f"{where(0)}: column '{name}' cannot be kept: {error}. Make its values alike.") from None
        raise DataError(
            f"{where(other[0])}: column '{name}' holds a value of type {other[1]}, in {where(kinds[0][0])} it is "
            f"{kinds[0][1]}. Give all rows the same type."
        ) from None
