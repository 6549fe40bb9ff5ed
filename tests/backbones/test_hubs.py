"""`hf://` and `kaggle://` through their own clients, against servers on this machine."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="the extra hf fetches hf:// handles")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": json.dumps({"model_type": "bert"}).encode(),
    "model.safetensors": os.urandom(5000),
    "pytorch_model.bin": os.urandom(9000),
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "flax_model.msgpack": b"x" * 100,
}
CODE = """
import os
import sys
if address := os.environ.get("KAGGLE_SERVER"):
    from kagglesdk import kaggle_env
    kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = address
from kft.backbones import folders
from kft.errors import KftError
try:
    print("at", folders.locate(sys.argv[1]).path)
except KftError as error:
    print("refused:", error)
"""


JSON = {"Content-Type": "application/json"}


class Hub(ThreadingHTTPServer):
    """Answers as the Hugging Face hub does for one model, and refuses others."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.files = dict(FILES)
        self.breaks: dict[str, int] = {}
        self.digests: dict[str, str] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Kaggle's calls; a file is given by sending the client on to where it lies."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rpartition("/")[2]
        self.server.asked.append(f"{call} {asked.get('path', '')}".strip())
        for word, code in (("secret", 401), ("absent", 404)):
            if asked["modelSlug"] == word:
                self._send(code, json.dumps({"code": code, "message": "no"}).encode(), JSON, body=True)
                return
        if call == "GetModelInstance":
            self._json({"versionNumber": 3}, body=True)
        elif call == "ListModelInstanceVersionFiles":
            self._json({"files": [{"name": name} for name in self.server.files], "nextPageToken": ""}, body=True)
        else:
            self._send(302, b"", {"Location": f"{self.server.address}/owner/model/{asked['path']}"}, body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        for word, code in (("secret", 401), ("absent", 404)):
            if f"/{word}" in path:
                self._send(code, b"{}", {}, body)
                return
        if re.fullmatch(r"/api/models/owner/\w+/revision/\w+", path):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": "owner/model", "sha": COMMIT, "siblings": siblings}, body)
        elif path.startswith("/api/models/owner/") and "/tree/" in path:
            self._json(
                [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in self.server.files.items()],
                body,
            )
        elif (name := path.rpartition("/")[2]) in self.server.files:
            content = self.server.files[name]
            digest = self.server.digests.get(name) or base64.b64encode(hashlib.md5(content).digest()).decode()
            headers = {
                "ETag": f'"{_oid(content)}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
                "X-Goog-Hash": f"md5={digest}",
            }
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            self._send(
                206 if start else 200,
                content[start:],
                headers,
                body,
                self.server.breaks.pop(name, None) if body else None,
            )
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

    def _json(self, values: object, body: bool) -> None:
        self._send(200, json.dumps(values).encode(), JSON, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool, stop: int | None = None) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:stop])
            if stop is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def located(handle: str, tmp_path: Path, **environment: str) -> str:
    """Returns what a process of its own says, whose caches are empty but for what it left there before."""
    own = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "KAGGLEHUB_CACHE": str(tmp_path / "kaggle"),
        "KFT_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "KAGGLE"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, handle],
        env={**inherited, **own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_a_model_of_hugging_face_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    said = located("hf://owner/model", tmp_path, HF_ENDPOINT=hub.address)
    folder = Path(said.removeprefix("at "))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    hub.shutdown()
    hub.server_close()
    assert located("hf://owner/model", tmp_path, HF_ENDPOINT=hub.address) == said


def test_torchs_own_files_are_fetched_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    folder = Path(located("hf://owner/model", tmp_path, HF_ENDPOINT=hub.address).removeprefix("at "))
    assert (folder / "pytorch_model.bin").read_bytes() == FILES["pytorch_model.bin"]


def test_a_download_of_hugging_face_that_breaks_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = {"model.safetensors": 1000}
    said = located("hf://owner/model", tmp_path, HF_ENDPOINT=hub.address)
    if said.startswith("refused"):  # the client may try again by itself
        assert "broke off" in said and "The same command goes on with the download" in said
        said = located("hf://owner/model", tmp_path, HF_ENDPOINT=hub.address)
    assert (Path(said.removeprefix("at ")) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        (
            "hf://owner/secret",
            "answers 401: the model is private, wants its terms to be accepted on https://huggingface.co/",
        ),
        ("hf://owner/absent", "answers 404: there is no such model or version on https://huggingface.co/owner/absent"),
    ],
)
def test_refusals_of_hugging_face(hub: Hub, tmp_path: Path, handle: str, expected: str) -> None:
    said = located(handle, tmp_path, HF_ENDPOINT=hub.address)
    assert said.startswith(f"refused: Cannot fetch '{handle}'") and expected in said


def test_a_hub_that_is_not_reached(hub: Hub, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    said = located("hf://owner/model", tmp_path, HF_ENDPOINT=hub.address)
    assert said.startswith("refused: Cannot fetch 'hf://owner/model' from here") and "give its folder instead" in said


@pytest.fixture
def kaggle(hub: Hub, backend: str) -> Hub:
    """Answers as Kaggle does, on a backend, since kagglehub comes with keras-hub."""
    if backend != "torch":
        pytest.skip("Kaggle's client knows no backend: once is enough")
    if importlib.util.find_spec("kagglehub") is None:
        pytest.skip("kagglehub, which comes with keras-hub, fetches kaggle:// handles")
    hub.files = {name: FILES[name] for name in ("config.json", "model.safetensors", "vocab.txt")}
    return hub


MODEL = "kaggle://owner/model/keras/small"


@pytest.mark.backend
@pytest.mark.parametrize("handle", [MODEL, f"{MODEL}/3"])
def test_a_model_of_kaggle_is_fetched_once(kaggle: Hub, tmp_path: Path, handle: str) -> None:
    said = located(handle, tmp_path, KAGGLE_SERVER=kaggle.address)
    folder = Path(said.removeprefix("at "))
    assert {path.name for path in folder.iterdir()} == set(kaggle.files)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    kaggle.shutdown()
    kaggle.server_close()
    assert located(handle, tmp_path, KAGGLE_SERVER=kaggle.address) == said


@pytest.mark.backend
def test_a_download_of_kaggle_that_breaks_off_goes_on(kaggle: Hub, tmp_path: Path) -> None:
    kaggle.breaks = {"model.safetensors": 1000}
    said = located(MODEL, tmp_path, KAGGLE_SERVER=kaggle.address)
    assert said.startswith(f"refused: Cannot fetch '{MODEL}': the connection broke off")
    said = located(MODEL, tmp_path, KAGGLE_SERVER=kaggle.address)
    assert (Path(said.removeprefix("at ")) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.backend
def test_a_file_of_kaggle_that_is_another_is_refused(kaggle: Hub, tmp_path: Path) -> None:
    kaggle.digests = {"model.safetensors": base64.b64encode(hashlib.md5(b"other").digest()).decode()}
    said = located(MODEL, tmp_path, KAGGLE_SERVER=kaggle.address)
    assert said.startswith(f"refused: Cannot fetch '{MODEL}'"), said
    assert "broke off, or a file came otherwise than it was announced" in said
    kaggle.digests = {}
    said = located(MODEL, tmp_path, KAGGLE_SERVER=kaggle.address)
    assert (Path(said.removeprefix("at ")) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.backend
@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        ("kaggle://owner/secret/keras/small", "answers 401: the model is private"),
        ("kaggle://owner/absent/keras/small", "answers 404: there is no such model or version"),
    ],
)
def test_refusals_of_kaggle(kaggle: Hub, tmp_path: Path, handle: str, expected: str) -> None:
    said = located(handle, tmp_path, KAGGLE_SERVER=kaggle.address)
    assert said.startswith(f"refused: Cannot fetch '{handle}'") and expected in said
    assert "https://www.kaggle.com/models/owner/" in said


@pytest.mark.backend
def test_kaggle_that_is_not_reached(kaggle: Hub, tmp_path: Path) -> None:
    kaggle.shutdown()
    kaggle.server_close()
    said = located(MODEL, tmp_path, KAGGLE_SERVER=kaggle.address)
    assert said.startswith(f"refused: Cannot fetch '{MODEL}' from here") and "give its folder instead" in said
