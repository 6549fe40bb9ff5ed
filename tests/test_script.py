"""The script in examples/ runs as it stands, on a preset folder that KerasHub itself wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend
SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "script.py"


@pytest.fixture(scope="module")
def preset(tiny: dict, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory, backend: str) -> Path:
    """A KerasHub preset folder of a tiny BERT."""
    import keras_hub

    folder = tmp_path_factory.mktemp("preset")
    keras_hub.models.BertBackbone(**tiny["model"]["config"]).save_to_preset(str(folder))
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    shutil.copyfile(vocabulary / "vocab.txt", assets / "vocabulary.txt")
    tokenizer = {"module": "keras_hub", "class_name": "BertTokenizer", "config": {"lowercase": True}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf8")
    return folder


def test_the_script_trains_and_says_what_it_reached(preset: Path, backend: str) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    run = subprocess.run([sys.executable, str(SCRIPT), str(preset)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith(f"{backend}: validation accuracy ")
    assert last.endswith("on labels negative, positive")
    assert "Epoch 5/5" in run.stdout
