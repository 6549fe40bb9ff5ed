"""What the tests share: a place of their own for caches, a tiny vocabulary, tiny data and a tiny recipe."""

from __future__ import annotations

import atexit
import copy
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# Before anything imports keras: it writes a configuration file into its home.
_HOME = tempfile.mkdtemp(prefix="kft-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.setdefault("KERAS_HOME", str(Path(_HOME) / "keras"))
os.environ.setdefault("KFT_CACHE", str(Path(_HOME) / "cache"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

BACKEND = os.environ.get("KFT_TEST_BACKEND")
GOOD = ["good", "great", "lovely", "fine", "excellent", "superb"]
BAD = ["bad", "awful", "poor", "broken", "terrible", "sad"]
NEUTRAL = ["the", "a", "film", "book", "phone", "table", "it", "was", "very", "quite", "so", "and"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says why a test that needs a backend, or all three, does not run."""
    for item in items:
        if item.get_closest_marker("backend") and BACKEND is None:
            item.add_marker(pytest.mark.skip(reason="KFT_TEST_BACKEND names no backend"))
        if item.get_closest_marker("parity") and not os.environ.get("KFT_TEST_PARITY"):
            item.add_marker(pytest.mark.skip(reason="KFT_TEST_PARITY is not set: needs all three backends"))


@pytest.fixture(scope="session")
def backend() -> str:
    """The backend under test, active."""
    assert BACKEND is not None
    from kft import backend as backends

    return backends.activate(BACKEND)


@pytest.fixture(autouse=True)
def whole_precision() -> Iterator[None]:
    """Takes back the precision of a run, which would be that of the tests that follow in the same process."""
    yield
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def once(backend: str) -> None:
    """Skips a test of what no backend takes part in, but for the environment that has torch and TensorFlow."""
    if backend != "torch":
        pytest.skip("no backend takes part in it: it runs where torch is tested")


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a WordPiece vocabulary of a few dozen tokens."""
    folder = tmp_path_factory.mktemp("vocabulary")
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *NEUTRAL, *letters, ".", ","]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf8")
    return folder


def review(rng: random.Random, label: str) -> str:
    """Returns a sentence in which one word decides."""
    words = [rng.choice(NEUTRAL) for _ in range(rng.randint(3, 30))]
    words.insert(rng.randrange(len(words)), rng.choice(GOOD if label == "positive" else BAD))
    return " ".join(words)


@pytest.fixture(scope="session")
def hugging_face(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow BERT's configuration and vocabulary in Hugging Face's layout, without weights."""
    folder = tmp_path_factory.mktemp("hugging-face")
    words = (vocabulary / "vocab.txt").read_text(encoding="utf8").split()
    values = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    (folder / "config.json").write_text(json.dumps(values), encoding="utf8")
    (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 240 short reviews that a tiny model can learn."""
    rng = random.Random(0)
    file = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    labels = ["positive", "negative"] * 120
    rows = [f"{review(rng, label)},{label}" for label in labels]
    file.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf8")
    return file


@pytest.fixture(scope="session")
def tiny(vocabulary: Path, reviews: Path) -> dict:
    """A recipe that trains in seconds: two narrow BERT blocks from random weights."""
    size = len((vocabulary / "vocab.txt").read_text(encoding="utf8").split("\n")) - 1
    return {
        "task": "text_classification",
        "model": {
            "pretrained": False,
            "architecture": "BertBackbone",
            "tokenizer": str(vocabulary),
            "config": {
                "vocabulary_size": size,
                "num_layers": 2,
                "num_heads": 2,
                "hidden_dim": 16,
                "intermediate_dim": 32,
                "max_sequence_length": 64,
                "dropout": 0.0,
            },
            "head_dropout": 0.0,
            "sequence_length": 48,
        },
        "data": {"source": str(reviews), "test": 0.2},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "log_every": 1},
    }


def write_recipe(folder: Path, recipe: dict) -> Path:
    """Writes a recipe into a folder and returns its file."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf8")
    return file


@pytest.fixture(scope="session")
def short_reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 160 reviews of three to six words: with `sequence_length: 8` all batches have one shape."""
    rng = random.Random(1)
    file = tmp_path_factory.mktemp("short-reviews") / "reviews.csv"
    rows = []
    for label in ["positive", "negative"] * 80:
        words = [rng.choice(NEUTRAL) for _ in range(rng.randint(2, 5))]
        words.insert(rng.randint(0, len(words)), rng.choice(GOOD if label == "positive" else BAD))
        rows.append(f"{' '.join(words)},{label}")
    file.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf8")
    return file


@pytest.fixture(scope="session")
def variant() -> Callable[..., dict]:
    """Changes fields of a recipe, named as `train.epochs`; None takes a field out."""

    def change(recipe: dict, changes: dict[str, Any]) -> dict:
        changed = copy.deepcopy(recipe)
        for name, value in changes.items():
            *parents, last = name.split(".")
            place = changed
            for parent in parents:
                place = place.setdefault(parent, {})
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        return changed

    return change


@pytest.fixture(scope="session")
def quick(tiny: dict, short_reviews: Path, variant: Callable[..., dict]) -> dict:
    """A recipe that learns in some thirty steps of one shape."""
    return variant(
        tiny,
        {
            "model.sequence_length": 8,
            "model.config.num_layers": 1,
            "model.config.max_sequence_length": 8,
            "model.pooling": "mean",
            "data.source": str(short_reviews),
            "train.epochs": 4,
            "train.learning_rate": 3e-2,
            "train.metrics": ["accuracy", "f1_macro", "matthews_correlation"],
        },
    )


@pytest.fixture(scope="session")
def finished_run(
    backend: str, quick: dict, variant: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder of the quick recipe, complete."""
    import kft

    folder = tmp_path_factory.mktemp("finished") / "run"
    return kft.run(variant(quick, {"backend": backend, "output.directory": str(folder)})).run
