"""Three small jobs to compare backends with: a text, a tagging and an image one, each a recipe and its data."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from kft import recipe, rundir
from kft.recipe import Recipe

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
# What a GPU is given more of: a small batch leaves it idle.
GPU = {"train.precision": "mixed_bfloat16", "train.batch_size": 256, "train.evaluation_batch_size": 512}
SENTENCES = {"train": 1200, "validation": 200}
MORE_SENTENCES = {"train": 20_000, "validation": 2000}
# fmt: off
FIRST = (
    "Ada", "Bela", "Carlo", "Dina", "Emil", "Fara", "Gita", "Hugo", "Ines", "Jonas", "Kira", "Lena", "Marek",
    "Nora", "Otto", "Petra", "Rana", "Selim", "Tomas", "Vera"
)
LAST = (
    "Abel", "Brandt", "Costa", "Dubois", "Evans", "Fischer", "Garcia", "Haddad", "Ivanov", "Jensen", "Kaya",
    "Lopez", "Moreau", "Novak", "Olsen", "Popov"
)
PLACES = (
    "Aarhus", "Bergen", "Cairo", "Dakar", "Essen", "Faro", "Ghent", "Haifa", "Izmir", "Jaipur", "Kiel", "Lagos",
    "Malmo", "Nice", "Oslo", "Porto", "Riga"
)
FILLING = (
    "the", "a", "old", "new", "report", "says", "that", "people", "from", "near", "with", "after", "before",
    "trade", "music", "rain", "market", "train", "letter", "met", "saw", "left", "found", "called", "about", "many",
    "few", "good", "late", "early", "house", "street", "and", "but", "while", "over", "under", "again", "today",
    "soon", "because"
)
# fmt: on


def text(data: Path, *, gpu: bool) -> Recipe:
    """The quickstart with all of MiniLM trained: topics of BBC News, 128 tokens; on a CPU 30 batches of it."""
    with as_file(files("kft") / "recipes" / "quickstart.yaml") as file:
        found = recipe.load(file)
    changes: dict[str, Any] = {"model.trainable": "all", "train.learning_rate": 5e-5}
    return found.changed(changes | (GPU | {"train.epochs": 10} if gpu else {"data.limit": 960}))


def tagging(data: Path, *, gpu: bool) -> Recipe:
    """Names and places in made-up sentences of 4 to 40 words, all of MiniLM trained."""
    folder = data / ("tagging-gpu" if gpu else "tagging")
    for number, (split, count) in enumerate((MORE_SENTENCES if gpu else SENTENCES).items()):
        rundir.write_text(folder_made(folder) / f"{split}.conll", sentences(random.Random(number), count))
    with as_file(files("kft") / "recipes" / "quickstart.yaml") as file:
        model = recipe.load(file).model
    values: dict[str, Any] = {
        "task": "token_classification",
        "model": {"preset": model.preset, "sha256": model.sha256, "sequence_length": 128},
        "data": {"source": str(folder.resolve()), "inputs": ["tokens"], "target": "tags"},
        "train": {"epochs": 2, "batch_size": 32, "learning_rate": 5e-5, "metrics": ["entity_f1"]},
    }
    found = recipe.validate(values, "tagging")
    return found.changed(GPU) if gpu else found


def image(data: Path, *, gpu: bool) -> Recipe:
    """The example's small ResNet on scikit-learn's digits; on a GPU a wider one, more often."""
    folder = data / "digits"
    if not folder.is_dir():
        subprocess.run([sys.executable, str(EXAMPLES / "make_digits.py"), str(folder)], check=True, stdout=sys.stderr)
    found = recipe.load(EXAMPLES / "digits.yaml", [f"data.source={folder.resolve()}"])
    wider = {"model.config": {**found.model.config, "stackwise_num_filters": [256, 512]}, "train.epochs": 20}
    return found.changed(GPU | wider) if gpu else found


JOBS: dict[str, Callable[..., Recipe]] = {"text": text, "tagging": tagging, "image": image}


def folder_made(folder: Path) -> Path:
    """Makes a folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sentences(rng: random.Random, count: int) -> str:
    """Returns sentences as CoNLL: a word and its tag a line, an empty line between two sentences."""
    return "\n".join("".join(f"{word}\t{tag}\n" for word, tag in sentence(rng)) for _ in range(count))


def sentence(rng: random.Random) -> list[tuple[str, str]]:
    """Returns the words and tags of one sentence; most are short, as in the field."""
    found: list[tuple[str, str]] = []
    for _ in range(min(40, 4 + int(rng.expovariate(1 / 10)))):
        kind = rng.random()
        if kind < 0.06:
            found += [(rng.choice(FIRST), "B-PER"), (rng.choice(LAST), "I-PER")]
        elif kind < 0.12:
            found.append((rng.choice(PLACES), "B-LOC"))
        else:
            found.append((rng.choice(FILLING), "O"))
    return found
