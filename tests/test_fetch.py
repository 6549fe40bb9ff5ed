from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kft.errors import FetchError
from kft.fetch import cache_folder, fetch_wheel, file_sha256, split_pypi
from kft.progress import Progress

HANDLE = "pypi://kft-sample==1.0/sample/data"
FILES = {"sample/__init__.py": "raise SystemExit('imported')", "sample/data/a.txt": "one", "sample/data/b/c.txt": "two"}


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, note: str = "") -> None:
        self.steps.append((done, total, note))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place pip looks in; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    return folder


def write_wheel(
    folder: Path, members: dict[str, str] | list[tuple[zipfile.ZipInfo, str]], version: str = "1.0"
) -> Path:
    wheel = folder / f"kft_sample-{version}-py3-none-any.whl"
    infos = list(members.items()) if isinstance(members, dict) else list(members)
    about = f"kft_sample-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in infos:
            archive.writestr(name, content)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: kft-sample\nVersion: {version}\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return wheel


def test_fetches_only_what_lies_below_the_path_and_keeps_it(index: Path) -> None:
    wheel = write_wheel(index, FILES)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    heard = Heard()
    fetched = fetch_wheel(HANDLE, digest, heard)
    assert fetched.sha256 == digest == file_sha256(wheel)
    assert fetched.path == fetched.folder / "sample" / "data"
    assert sorted(p.relative_to(fetched.folder).as_posix() for p in fetched.folder.rglob("*") if p.is_file()) == [
        "sample/data/a.txt",
        "sample/data/b/c.txt",
    ]
    assert (fetched.path / "b" / "c.txt").read_text() == "two"
    assert "kft-sample==1.0" in heard.notes[0]
    assert heard.steps[-1][:2] == (6, 6) and "unpacking" in heard.steps[-1][2]
    assert not list((cache_folder() / "wheels").glob(".partial-*"))

    shutil.rmtree(index)  # what is kept needs no index
    assert fetch_wheel(HANDLE, digest) == fetched
    assert fetch_wheel(HANDLE) == fetched


def test_a_file_and_a_folder_of_one_wheel_are_kept_side_by_side(index: Path) -> None:
    write_wheel(index, FILES)
    one = fetch_wheel("pypi://kft_sample==1.0/sample/data/a.txt")
    whole = fetch_wheel("pypi://Kft.Sample==1.0/sample/")
    assert one.path.read_text() == "one"
    assert (whole.path / "__init__.py").exists()


def test_a_wrong_checksum_names_both_digests_and_keeps_nothing(index: Path) -> None:
    digest = file_sha256(write_wheel(index, FILES))
    with pytest.raises(FetchError, match=f"{digest}.*{'0' * 64}"):
        fetch_wheel(HANDLE, "0" * 64)
    assert not list(cache_folder().rglob("*.txt"))
    fetch_wheel(HANDLE, digest)
    with pytest.raises(FetchError, match=rf"kept in .*{digest}.*{'0' * 64}.*delete that folder"):
        fetch_wheel(HANDLE, "0" * 64)


def test_a_copy_that_lost_files_is_not_taken_for_whole(index: Path) -> None:
    write_wheel(index, FILES)
    shutil.rmtree(fetch_wheel(HANDLE).path)
    with pytest.raises(FetchError, match="Delete '.*' to fetch it again"):
        fetch_wheel(HANDLE)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sample/data/../../../evil.txt", "leaves its folder"),
        ("../evil.txt", "leaves its folder"),
        ("/tmp/evil.txt", "absolute"),
        ("sample\\data\\evil.txt", "backslash"),
        ("C:/evil.txt", "colon"),
    ],
)
def test_a_name_that_escapes_is_refused(index: Path, tmp_path: Path, name: str, said: str) -> None:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    write_wheel(index, [*((zipfile.ZipInfo(key), value) for key, value in FILES.items()), (info, "evil")])
    with pytest.raises(FetchError, match=said) as caught:
        fetch_wheel(HANDLE)
    assert "evil.txt" in str(caught.value)
    assert not list(tmp_path.rglob("evil.txt")) and not list(cache_folder().rglob("a.txt"))


@pytest.mark.parametrize(("kind", "said"), [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFIFO, "neither a file")])
def test_a_member_that_is_no_file_is_refused(index: Path, kind: int, said: str) -> None:
    link = zipfile.ZipInfo("sample/data/link")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    write_wheel(index, [(zipfile.ZipInfo("sample/data/a.txt"), "one"), (link, "/etc/passwd")])
    with pytest.raises(FetchError, match=said):
        fetch_wheel(HANDLE)
    assert not list(cache_folder().rglob("a.txt"))


@pytest.mark.parametrize("names", [("a.txt", "A.txt"), ("a.txt", "a.txt"), ("a", "a/b"), ("e\u0301.txt", "\u00e9.txt")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_fall_together_are_refused(index: Path, names: tuple[str, str]) -> None:
    write_wheel(index, [(zipfile.ZipInfo(f"sample/data/{name}"), "x") for name in names])
    with pytest.raises(FetchError, match="nothing of it was unpacked"):
        fetch_wheel(HANDLE)


def _patch_sizes(wheel: Path, name: str, size: int) -> None:
    """Makes the list at the end of a wheel tell another size of a member than it has."""
    content = bytearray(wheel.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    wheel.write_bytes(content)


@pytest.mark.parametrize(("size", "said"), [(3, "cannot be unpacked|not a wheel that"), (3 << 30, "refused")])
def test_a_member_that_lies_about_its_size_is_refused(index: Path, size: int, said: str) -> None:
    wheel = write_wheel(index, {"sample/data/a.txt": "0" * 5000})
    _patch_sizes(wheel, "sample/data/a.txt", size)
    with pytest.raises(FetchError, match=said):
        fetch_wheel(HANDLE)
    assert not list(cache_folder().rglob("a.txt"))


def test_a_path_that_is_not_there_offers_the_nearest(index: Path) -> None:
    write_wheel(index, FILES)
    with pytest.raises(FetchError, match=r"no 'sample/dta'.*Nearest in it: sample/data"):
        fetch_wheel("pypi://kft-sample==1.0/sample/dta")


def test_a_release_that_is_not_there_says_how_to_go_on(index: Path) -> None:
    write_wheel(index, FILES)
    with pytest.raises(FetchError) as caught:
        fetch_wheel("pypi://kft-sample==2.0/sample/data")
    message = str(caught.value)
    assert "pypi://kft-sample==2.0/sample/data" in message and "No matching distribution" in message
    assert "pip download --no-deps kft-sample==2.0" in message and "\n" not in message


def test_a_closed_network_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(FetchError, match="index could not be reached.*local folder"):
        fetch_wheel(HANDLE)


@pytest.mark.parametrize(
    "handle",
    [
        "pypi://kft-sample==1.0",
        "pypi://kft-sample==1.0/",
        "pypi://kft-sample/data",
        "pypi://kft-sample>=1.0/data",
        "pypi://--index-url==1/data",
        "pypi://kft-sample==1.0/../data",
        "pypi://kft-sample==1.0//etc",
        "https://kft-sample==1.0/data",
    ],
)
def test_a_handle_of_another_form_is_refused(handle: str) -> None:
    with pytest.raises(FetchError, match=re.escape("pypi://NAME==VERSION/PATH/IN/WHEEL")):
        split_pypi(handle)


def test_a_handle_is_parted() -> None:
    assert split_pypi("pypi://a-b.c==1.0.post1+cpu/d/e.csv") == ("a-b.c", "1.0.post1+cpu", "d/e.csv")


def test_two_at_once_end_with_one_copy(index: Path) -> None:
    write_wheel(index, FILES)
    code = f"from kft.fetch import fetch_wheel; print(fetch_wheel({HANDLE!r}).path)"
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda _: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True), "ab")
        )
    assert [run.returncode for run in found] == [0, 0], found
    assert found[0].stdout == found[1].stdout
    assert (Path(found[0].stdout.strip()) / "a.txt").read_text() == "one"


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("KFT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "kft"


def test_a_cache_folder_that_cannot_be_made_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index, FILES)
    (index.parent / "file").write_text("")
    monkeypatch.setenv("KFT_CACHE", str(index.parent / "file" / "cache"))
    with pytest.raises(FetchError, match="cannot keep it in the cache folder '.*file'.*KFT_CACHE"):
        fetch_wheel(HANDLE)


def _can_mount() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.EPERM)


@pytest.mark.parametrize("kilobytes", [64, 400])
def test_a_full_disk_is_one_line_that_names_folder_and_bytes(index: Path, tmp_path: Path, kilobytes: int) -> None:
    """At 64 KB the download does not fit, at 400 KB the download fits and what it unpacks to does not."""
    if not _can_mount():
        pytest.skip("a file system of its own cannot be mounted here: unshare -rm is missing or not allowed")
    noise = os.urandom(60_000).hex()  # deflates to about half
    write_wheel(index, {"sample/data/a.txt": noise, "sample/data/b.txt": noise, "sample/data/c.txt": "0" * 400_000})
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "from kft.errors import FetchError\nfrom kft.fetch import fetch_wheel\n"
        f"try:\n    fetch_wheel({HANDLE!r})\nexcept FetchError as error:\n    print(error)"
    )
    script = f'mount -t tmpfs -o size={kilobytes}k none "{disk}" && exec "{sys.executable}" -c "$CODE"'
    environment = {**os.environ, "CODE": code, "KFT_CACHE": str(disk / "cache")}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=environment)
    assert re.fullmatch(rf".*no room .* cache folder '{disk}/.*': [\d,]+ bytes free\. .*KFT_CACHE.*\n", done.stdout), (
        done
    )


def test_without_pip_in_this_python_the_one_on_the_path_is_used(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index, FILES)
    pip = shutil.which("pip", path=str(Path(sys.executable).parent))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match="Type: python -m ensurepip"):
        fetch_wheel(HANDLE)
    if pip is None:
        pytest.skip("there is no pip beside this Python")
    monkeypatch.setenv("PATH", str(Path(pip).parent))
    assert (fetch_wheel(HANDLE).path / "a.txt").read_text() == "one"
