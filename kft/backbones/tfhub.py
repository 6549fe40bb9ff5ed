"""TF-Hub's addresses: a SavedModel as an archive, fetched once, unpacked once."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kft.backbones import saved_model
from kft.errors import ModelError
from kft.fetch import cache_folder
from kft.progress import Progress
from kft.rundir import explained, free_bytes, take_place

SITE = "https://tfhub.dev"
ARCHIVES = (".tar.gz", ".tgz", ".tar")
KAGGLE = re.compile(
    r"https://(?:www\.)?kaggle\.com/models/([^/]+)/([^/]+)/(?:frameworks/)?([^/]+)/(?:variations/)?([^/]+)"
    r"(?:/(?:versions/)?(\d+))?/?"
)
_CHUNK, _SECONDS = 1 << 20, 60


def kaggle_name(handle: str) -> str | None:
    """Returns the name kagglehub has for the address of a model's page, or None for any other handle."""
    found = KAGGLE.fullmatch(handle)
    if found is None:
        return None
    owner, model, framework, *rest = found.groups()
    # Pages write TensorFlow2 and tensorFlow2; kagglehub takes the second.
    return "/".join([owner, model, framework[0].lower() + framework[1:], *filter(None, rest)])


def is_archive(handle: str) -> bool:
    """Says whether a handle is the name of an archive on this machine's disk."""
    return handle.endswith(ARCHIVES) and "://" not in handle


def address(handle: str) -> str:
    """Returns the address that `tfhub://OWNER/MODEL/VERSION` stands for, or the one that the handle is."""
    site = os.environ.get("TFHUB_ENDPOINT", SITE).rstrip("/")
    return f"{site}/{handle.removeprefix('tfhub://').strip('/')}" if handle.startswith("tfhub://") else handle


def fetch(handle: str, progress: Progress | None = None) -> Path:
    """Returns the folder of a SavedModel, fetching and unpacking it where it is not there.

    A copy that `tensorflow_hub` keeps in TFHUB_CACHE_DIR is taken as it is. What was fetched of a download that broke off is
    kept, and the next one goes on there.

    Args:
        handle: `tfhub://OWNER/MODEL/VERSION`, an address that begins with http, or an archive on this machine's disk.
        progress: hears of the download.

    Raises:
        ModelError: if it cannot be had, is broken, or is not safe to unpack.
    """
    if is_archive(handle):
        return _unpacked(Path(handle), handle)
    url = address(handle)
    theirs = os.environ.get("TFHUB_CACHE_DIR")
    for name in (url, handle):
        kept = Path(theirs or "") / hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        if theirs and saved_model.is_one(kept):
            return kept
    place = cache_folder() / "tfhub" / hashlib.sha256(url.encode()).hexdigest()[:32]
    if not saved_model.is_one(place):
        with explained(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            archive = _download(url, place.with_name(place.name + ".part"), handle, progress)
            try:
                _unpack(archive, place, handle)
            finally:
                archive.unlink(missing_ok=True)
    return place


def _unpacked(archive: Path, handle: str) -> Path:
    if not archive.is_file():
        raise ModelError(f"No archive at '{handle}'. Give a .tar.gz of a SavedModel, or its folder.")
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    place = cache_folder() / "tfhub" / digest[:32]
    if not saved_model.is_one(place):
        with explained(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            _unpack(archive, place, handle)
    return place


def _download(url: str, part: Path, handle: str, progress: Progress | None) -> Path:
    """Returns the whole archive; `part` has what came before the last break, and is nobody else's while it grows."""
    own = Path(tempfile.mkdtemp(prefix=".fetching-", dir=part.parent)) / "archive.tar.gz"
    try:
        if part.is_file():
            part.replace(own)
        _receive(url, own, handle, progress)
        whole = part.with_suffix(f".{own.parent.name}.whole")
        own.replace(whole)
        return whole
    except BaseException:
        if own.is_file() and own.stat().st_size:
            own.replace(part)
        raise
    finally:
        shutil.rmtree(own.parent, ignore_errors=True)


def _receive(url: str, file: Path, handle: str, progress: Progress | None) -> None:
    start = file.stat().st_size if file.is_file() else 0
    separator = "&" if urllib.parse.urlsplit(url).query else "?"
    request = urllib.request.Request(f"{url}{separator}tf-hub-format=compressed")
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            start = start if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            total = start + int(answer.headers.get("Content-Length") or 0)
            done = _write(answer, file, start, total, handle, progress)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            error.close()
            file.unlink()
            return _receive(url, file, handle, progress)
        error.close()
        raise ModelError(_refusal(handle, url, error)) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"Cannot fetch '{handle}': {reason}. The same command goes on with the download; or give the folder of a "
            "SavedModel, or its .tar.gz."
        ) from None
    if total > start and done != total:
        raise ModelError(
            f"Cannot fetch '{handle}': {done:,} of {total:,} bytes came. The same command goes on with the download."
        )
    return None


def _write(answer: Any, file: Path, start: int, total: int, handle: str, progress: Progress | None) -> int:
    done = start
    with file.open("ab" if start else "wb") as target:
        while chunk := answer.read(_CHUNK):
            target.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress.advance(done, max(done, total), f"downloading {handle}, bytes")
    return done


def _refusal(handle: str, url: str, error: urllib.error.HTTPError) -> str:
    said = {
        401: "it is not open to everybody",
        403: "it is not open to everybody",
        404: "there is no such model",
    }.get(error.code, str(error.reason))
    return (
        f"Cannot fetch '{handle}': {urllib.parse.urlsplit(url).netloc} answers {error.code}, {said}. Check the name and the "
        "version, as in tfhub://google/small_bert/bert_en_uncased_L-2_H-128_A-2/2, or give the folder of a SavedModel."
    )


def _unpack(archive: Path, place: Path, handle: str) -> None:
    """Unpacks an archive beside `place` and moves it there, whole or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=place.parent))
    try:
        with _read(archive, handle) as members:
            for member in members:
                _extract(*member, temporary, handle)
        if not saved_model.is_one(temporary):
            there = ", ".join(sorted(entry.name for entry in temporary.iterdir())[:8]) or "nothing"
            raise ModelError(
                f"'{handle}' holds no SavedModel: {saved_model.FILE} is missing at its top (there: {there})."
            )
        take_place(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _read(archive: Path, handle: str) -> Iterator[Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]]:
    try:
        with tarfile.open(archive, "r:*") as opened:
            every = opened.getmembers()
            while opened.fileobj is not None and opened.fileobj.read(_CHUNK):
                continue  # to its very end, where its checksum is
            total = sum(member.size for member in every)
            if total > free_bytes(archive.parent):
                raise ModelError(f"'{handle}' unpacks to {total:,} bytes, more than the disk of the cache folder has.")
            yield ((opened, member) for member in every)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ModelError(
            f"'{handle}' is no archive that can be unpacked, or is cut off: {error}. Get it again."
        ) from None


def _extract(opened: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, handle: str) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    unsafe = ".." in parts or member.name.startswith("/") or "\\" in member.name
    if unsafe or not (member.isfile() or member.isdir()):
        what = "a name that leaves its folder" if unsafe else "which is neither a file nor a folder"
        raise ModelError(f"'{handle}' holds {member.name!a}, {what}; nothing of it was kept. Do not use this archive.")
    target = folder.joinpath(*parts)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = opened.extractfile(member)
    assert source is not None
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file)
