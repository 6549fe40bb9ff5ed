"""What a bench compares, and the order in which its pieces are run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kft import recipe as recipes
from kft.errors import BackendError, KftError, listed, unknown
from kft.recipe import BACKENDS, Recipe

PEAK = "matrix product"
REFERENCES: dict[str, tuple[str, ...]] = {"transformers": ("transformers", "transformers-grouped")}


@dataclass(frozen=True)
class Piece:
    """One process: a runner's work, for the n-th time.

    Attributes:
        runner: a backend, a reference, or the matrix product whose speed is the limit.
        repeat: counted from 1.
    """

    runner: str
    repeat: int

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.runner.replace(' ', '-')}-{self.repeat}"


@dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
        recipe: the job.
        name: what it is called after.
        backends: in the order asked for.
        references: other tools, as runners.
        repeats: processes a runner.
        steps: training steps of a quick look, or None for the whole training.
        seed: shuffles the order of the pieces.
        caches: `fresh` gives every process empty caches, `kept` the user's own.
    """

    recipe: Recipe
    name: str
    backends: tuple[str, ...] = BACKENDS
    references: tuple[str, ...] = ()
    repeats: int = 3
    steps: int | None = None
    seed: int = 0
    caches: str = "fresh"

    @property
    def runners(self) -> tuple[str, ...]:
        """The backends and the references, a row of the table each."""
        return (*self.backends, *self.references)

    @property
    def pieces(self) -> list[Piece]:
        """Every piece in the order of running: repeat after repeat, each one shuffled."""
        found = []
        for repeat in range(1, self.repeats + 1):
            runners = [PEAK, *self.runners]
            random.Random(f"{self.seed} {repeat}").shuffle(runners)
            found += [Piece(runner, repeat) for runner in runners]
        return found

    def dump(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        values = {field: value for field, value in asdict(self).items() if field != "recipe"}
        return {**values, "recipe": recipe_values(self.recipe)}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """Returns the settings that `dump` gave."""
        given: dict[str, Any] = {**values, "recipe": recipes.validate(values["recipe"], "recipe")}
        names = {name: tuple(given[name]) for name in ("backends", "references")}
        return cls(**{**given, **names})


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as JSON values from which it can be made again."""
    values = recipe.model_dump(mode="json")
    if recipe.train.stages:  # refused beside them
        del values["train"]["epochs"], values["model"]["trainable"]
    return values


def backends_of(text: str | None) -> tuple[str, ...]:
    """Returns the backends that a comma-separated list names, all three where there is no list.

    Raises:
        BackendError: for a name that is no backend.
    """
    names = _parts(text) if text is not None else list(BACKENDS)
    for name in names:
        if name not in BACKENDS:
            raise BackendError(unknown("backend", name, BACKENDS))
    if not names:
        raise BackendError(f"--backends names none. Available: {listed(BACKENDS)}, as in --backends torch,jax")
    return tuple(names)


def references_of(text: str | None) -> tuple[str, ...]:
    """Returns the runners of the tools that a comma-separated list names.

    Raises:
        KftError: for a tool that kft cannot run the same job with.
    """
    found: list[str] = []
    for name in _parts(text or ""):
        if name not in REFERENCES:
            raise KftError(unknown("tool after --against", name, REFERENCES))
        found += REFERENCES[name]
    return tuple(found)


def _parts(text: str) -> Sequence[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
