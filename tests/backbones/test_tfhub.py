"""TF-Hub's addresses, served from this machine: downloads that end well, break off, or are refused."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kft.backbones import folders, tfhub
from kft.errors import ModelError


def archive(files: dict[str, bytes]) -> bytes:
    """Returns a .tar.gz of some files."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return whole.getvalue()


WORDS = os.urandom(999)  # which cannot be made shorter
MODEL = archive({"./saved_model.pb": b"graph", "./variables/variables.index": b"index", "./assets/vocab.txt": WORDS})


class Server(ThreadingHTTPServer):
    """Serves archives; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.breaks_at: int | None = None
        self.content = MODEL

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        for word, code in (("secret", 401), ("absent", 404)):
            if word in self.path:
                self.send_error(code)
                return
        whole, start = self.server.content, 0
        if (asked := self.headers.get("Range")) and "norange" not in self.path:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(whole):
                self.send_error(416)
                return
        part = whole[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.server.breaks_at is not None:
            part, self.server.breaks_at = part[: self.server.breaks_at], None
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)
    made = Server()
    monkeypatch.setenv("TFHUB_ENDPOINT", made.address)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def kept(tmp_path: Path) -> list[str]:
    """Returns what lies in the cache, apart from unpacked models."""
    return sorted(path.name for path in (tmp_path / "cache" / "tfhub").iterdir() if not path.is_dir())


@pytest.mark.parametrize("form", ["tfhub://google/bert/1", "{address}/google/bert/1"])
def test_a_model_is_fetched_once(server: Server, tmp_path: Path, form: str) -> None:
    handle = form.format(address=server.address)
    folder = tfhub.fetch(handle)
    assert (folder / "assets" / "vocab.txt").read_bytes() == WORDS
    assert server.asked == [("/google/bert/1?tf-hub-format=compressed", None)]
    server.shutdown()
    server.server_close()
    assert tfhub.fetch(handle) == folder
    assert kept(tmp_path) == []


@pytest.mark.parametrize("name", ["google/bert/1", "google/norange/1"])
def test_a_broken_download_goes_on_or_begins_anew(server: Server, tmp_path: Path, name: str) -> None:
    server.breaks_at = 100
    with pytest.raises(ModelError, match=r"Cannot fetch 'tfhub://google/.*The same command goes on with the download"):
        tfhub.fetch(f"tfhub://{name}")
    assert [path.stat().st_size for path in (tmp_path / "cache" / "tfhub").glob("*.part")] == [100]
    folder = tfhub.fetch(f"tfhub://{name}")
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    assert server.asked[1][1] == "bytes=100-"
    assert kept(tmp_path) == []


def test_a_part_that_is_longer_than_the_model_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.breaks_at = 300
    with pytest.raises(ModelError, match="Cannot fetch"):
        tfhub.fetch("tfhub://google/bert/1")
    server.content = archive({"saved_model.pb": b"another"})
    assert len(server.content) < 300
    assert (tfhub.fetch("tfhub://google/bert/1") / "saved_model.pb").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("google/secret/1", r"answers 401, it is not open to everybody"),
        ("google/absent/1", r"answers 404, there is no such model. Check the name and the version"),
    ],
)
def test_refusals_of_the_server(server: Server, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as failure:
        folders.locate(f"tfhub://{name}")
    assert "\n" not in str(failure.value)
    assert list((tmp_path / "cache" / "tfhub").iterdir()) == []


def test_a_server_that_is_not_there(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(ModelError, match=r"Cannot fetch 'tfhub://google/bert/1': .*refused.*or give the folder"):
        tfhub.fetch("tfhub://google/bert/1")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            archive({"../outside.txt": b"x", "saved_model.pb": b"x"}),
            r"holds '../outside.txt', a name that leaves its folder",
        ),
        (archive({"/etc/outside": b"x"}), "a name that leaves its folder"),
        (
            archive({"readme.txt": b"x"}),
            r"holds no SavedModel: saved_model.pb is missing at its top \(there: readme.txt\)",
        ),
        (MODEL[:-40], "cut off"),
        (b"<html>moved</html>", "is no archive that can be unpacked"),
    ],
    ids=["escaping", "absolute", "another", "cut off", "a page"],
)
def test_archives_that_are_refused(server: Server, tmp_path: Path, content: bytes, said: str) -> None:
    server.content = content
    for handle in ("tfhub://google/bert/1", str(tmp_path / "model.tar.gz")):
        (tmp_path / "model.tar.gz").write_bytes(content)
        with pytest.raises(ModelError, match=said):
            tfhub.fetch(handle)
    assert list((tmp_path / "cache" / "tfhub").iterdir()) == []
    assert not list(tmp_path.rglob("outside*"))


def test_a_link_in_an_archive_is_refused(server: Server, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as made:
        link = tarfile.TarInfo("saved_model.pb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    with pytest.raises(ModelError, match="neither a file nor a folder"):
        tfhub.fetch(str(tmp_path / "model.tar.gz"))


def test_an_archive_on_the_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(MODEL)
    folder = tfhub.fetch(str(tmp_path / "model.tar.gz"))
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    assert (tmp_path / "model.tar.gz").is_file() and server.asked == []
    with pytest.raises(ModelError, match="No archive at"):
        folders.locate(str(tmp_path / "absent.tar.gz"))


def test_the_cache_of_tensorflow_hub_is_honoured(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hashlib.sha1(f"{server.address}/google/bert/1".encode()).hexdigest()
    place = tmp_path / "theirs" / name
    place.mkdir(parents=True)
    (place / "saved_model.pb").write_bytes(b"graph")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "theirs"))
    assert tfhub.fetch("tfhub://google/bert/1") == place
    assert server.asked == []


def test_those_that_fetch_at_once_do_not_harm_each_other(server: Server, tmp_path: Path) -> None:
    for version in range(20):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(tfhub.fetch, [f"tfhub://google/bert/{version}"] * 4))
        assert len(set(found)) == 1
        assert (found[0] / "saved_model.pb").read_bytes() == b"graph"
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (
            "https://www.kaggle.com/models/tensorflow/bert/frameworks/TensorFlow2/variations/en-uncased/versions/3",
            "tensorflow/bert/tensorFlow2/en-uncased/3",
        ),
        (
            "https://www.kaggle.com/models/google/mobilenet-v3/tensorFlow2/large/1",
            "google/mobilenet-v3/tensorFlow2/large/1",
        ),
        ("https://tfhub.dev/google/bert/1", None),
    ],
)
def test_kaggles_addresses(address: str, name: str | None) -> None:
    assert tfhub.kaggle_name(address) == name
