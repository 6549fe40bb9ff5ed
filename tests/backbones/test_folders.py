from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kft.backbones import folders
from kft.errors import FetchError, ModelError

HUGGING_FACE = {"model_type": "bert", "hidden_size": 16}
KERAS_HUB = {"class_name": "BertBackbone", "registered_name": "keras_hub>BertBackbone", "config": {}}
has_keras_hub = importlib.util.find_spec("keras_hub") is not None


def model_folder(folder: Path, config: object = HUGGING_FACE, **weights: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, content in weights.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    return folder


def refusal(handle: str, sha256: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        folders.locate(handle, sha256)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize(("config", "layout"), [(HUGGING_FACE, "hugging_face"), (KERAS_HUB, "keras_hub")])
def test_a_folder_is_what_its_config_says(tmp_path: Path, config: dict, layout: str) -> None:
    found = folders.locate(str(model_folder(tmp_path / "model", config)))
    assert (found.path, found.format, found.config, found.sha256) == (tmp_path / "model", layout, config, None)


def test_the_digest_is_that_of_the_weights_in_the_order_of_their_names(tmp_path: Path) -> None:
    handle = str(model_folder(tmp_path / "model", b=b"second", a=b"first "))
    digest = hashlib.sha256(b"first second").hexdigest()
    assert folders.locate(handle).sha256 == digest
    assert folders.locate(handle, digest).sha256 == digest


def test_a_wrong_digest_names_both(tmp_path: Path) -> None:
    handle = str(model_folder(tmp_path / "model", a=b"weights"))
    message = refusal(handle, "0" * 64)
    assert hashlib.sha256(b"weights").hexdigest() in message and "0" * 64 in message
    assert handle in message and "model.sha256" in message


@pytest.mark.parametrize("handle", ["ftp://example.org/model", "s3://bucket/model", "tfhubs://x"])
def test_an_unknown_scheme_lists_the_known_ones(handle: str) -> None:
    message = refusal(handle)
    assert f"Unknown scheme '{handle.partition(':')[0]}://'" in message and handle in message
    assert all(scheme in message for scheme in ("kerashub://", "kaggle://", "hf://", "pypi://"))


@pytest.mark.parametrize("handle", ["./no/such/model", "/no/such/model", "model.safetensors"])
def test_a_folder_that_is_not_there(handle: str) -> None:
    message = refusal(handle)
    assert message.startswith(f"No model folder at '{handle}'.") and "hf://OWNER/NAME" in message


def test_a_folder_without_a_config_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert f"No config.json in '{tmp_path}' (there: pytorch_model.bin)" in refusal(str(tmp_path))


@pytest.mark.parametrize("config", ["{", "[]", "3", '"bert"', "{}", '{"hidden_size": 3}'])
def test_a_config_that_is_none_is_named(tmp_path: Path, config: str) -> None:
    assert f"'{tmp_path / 'm' / 'config.json'}'" in refusal(str(model_folder(tmp_path / "m", config)))


def test_a_wheel_handle_without_a_version_says_the_form() -> None:
    with pytest.raises(FetchError, match="pypi://NAME==VERSION/PATH/IN/WHEEL"):
        folders.locate("pypi://some-model/path")


@pytest.mark.skipif(has_keras_hub, reason="keras-hub is here")
@pytest.mark.parametrize("handle", ["bert_tiny_en_uncased", "kerashub://bert_tiny_en_uncased"])
def test_without_keras_hub_a_preset_cannot_be_told(handle: str) -> None:
    message = refusal(handle)
    assert f"'{handle}'" in message and "keras-hub is not installed" in message and "pip install" in message


@pytest.mark.skipif(not has_keras_hub, reason="keras-hub is not installed")
@pytest.mark.parametrize("handle", ["bert_tiny_en_uncase", "kerashub://bert_tiny_en_uncase"])
def test_an_unknown_preset_offers_the_nearest(handle: str) -> None:
    message = refusal(handle)
    assert "Unknown preset 'bert_tiny_en_uncase'. Did you mean 'bert_tiny_en_uncased'?" in message
    assert "kft list models" in message


@pytest.mark.skipif(not has_keras_hub, reason="keras-hub is not installed")
def test_presets_are_read_without_importing_keras_hub() -> None:
    code = (
        "import sys; from kft.backbones.folders import presets; found = presets();"
        "assert 'keras' not in sys.modules and 'keras_hub' not in sys.modules;"
        "assert found['bert_tiny_en_uncased']['kaggle_handle'].startswith('kaggle://keras/bert/'), found;"
        "assert found['resnet_18_imagenet']['family'] == 'resnet'; print(len(found))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 150


LOCATE = """
import sys
from kft.backbones import folders
from kft.errors import ModelError
try:
    folders.locate(sys.argv[1])
except ModelError as error:
    print(error)
"""


def without_network(handle: str, place: Path) -> str:
    """What a machine that reaches nothing says, in a process that has never reached anything."""
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), nowhere)
    caches = {"HF_HOME": str(place), "KAGGLEHUB_CACHE": str(place), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **proxies, **caches, "NO_PROXY": "", "no_proxy": ""}
    command = [sys.executable, "-c", LOCATE, handle]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 1, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("handle", "needs"),
    [
        ("hf://google-bert/bert-base-uncased", "huggingface_hub"),
        ("hf://google-bert/bert-base-uncased@main", "huggingface_hub"),
        ("kaggle://keras/bert/keras/bert_tiny_en_uncased", "kagglehub"),
        ("kerashub://bert_tiny_en_uncased", "keras_hub"),
        ("bert_tiny_en_uncased", "keras_hub"),
    ],
)
def test_without_a_network_the_handle_is_named_and_the_way_with_a_local_copy(
    tmp_path: Path, handle: str, needs: str
) -> None:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    message = without_network(handle, tmp_path)
    assert message.startswith(f"Cannot fetch '{handle}' from here: ")
    assert "model.preset=/path/to/folder" in message and "config.json" in message


@pytest.mark.skipif(importlib.util.find_spec("kagglehub") is not None, reason="kagglehub is here")
def test_without_kagglehub_the_line_that_installs_it_is_said() -> None:
    message = refusal("kaggle://keras/bert/keras/bert_tiny_en_uncased")
    assert "kagglehub" in message and 'pip install "keras-finetune[jax]"' in message
