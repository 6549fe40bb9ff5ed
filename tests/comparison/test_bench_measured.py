"""What a bench listens to while a backend trains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.backend


def test_a_sample_has_every_length_as_often_as_it_comes(backend: str) -> None:
    from kft.comparison.bench.measured import sampled

    plan = [(np.arange(4), length) for length in [16] * 60 + [32] * 30 + [128] * 10]
    found = [length for _, length in sampled(plan, 20, seed=0)]
    assert Counter(found) == {16: 12, 32: 6, 128: 2}
    assert found[0] == 128 and found[1] != 128
    assert [length for _, length in sampled(plan, 20, seed=0)] == found
    assert len(sampled(plan, 1000, seed=0)) == 100


def test_what_is_compiled_once(backend: str) -> None:
    from kft.comparison.bench.measured import compiled

    lengths = [(0, 64), (0, 32), (0, 64), (0, 17), (0, 9), (1, 64), (1, 64)]
    each = compiled(lengths, each=True)
    assert each[0] == each[2] != each[1] and each[5] == each[6] != each[0] and len(set(each)) == 5
    # TensorFlow's second trace takes any length; so does what torch warms up
    assert compiled(lengths, each=False)[3] == compiled(lengths, each=False)[4]


def test_every_step_of_every_stage_is_heard(backend: str, quick: dict, variant: Any, tmp_path: Path) -> None:
    from kft import pipeline, rundir
    from kft import recipe as recipes
    from kft.comparison.bench import measured
    from kft.comparison.bench.clock import Clock
    from kft.progress import Progress

    stages = [{"trainable": "head", "epochs": 1}, {"epochs": 2}, {"trainable": "head", "epochs": 2}]
    fields = {"train.stages": stages, "train.epochs": None, "backend": backend}
    prepared = pipeline.prepare(recipes.validate(variant(quick, fields), "quick"), Progress())
    clock = Clock()
    training = measured.prepare(prepared, rundir.create(tmp_path / "run"), Progress(), clock, None)
    found = measured.run(training, clock)
    rows = len(prepared.encoded["train"])
    assert len(found["epochs"]) == 5 and found["steps"] == 5 * -(-rows // 16) and found["examples"] == 5 * rows
    assert found["tokens"] == 5 * prepared.encoded["train"].row_lengths.sum()  # type: ignore[union-attr]
    assert sum(found["epochs"]) < found["seconds"]
    assert found["losses"][-1][1] < found["losses"][0][1] and found["losses"][-1][0] < found["seconds"]
    # One block of width 16: four square matrices and two of 16 by 32 a token; a head of 16 by 2 and an unread pooler a row.
    block, lengths = 4 * 16 * 16 + 2 * 16 * 32, prepared.encoded["train"].row_lengths
    assert lengths is not None
    tokens, head = int(lengths.sum()), 16 * 2
    # The last stage's frozen part is computed once for both of its epochs.
    weights = (2 + 6 + 6 + 2) * block * tokens + 5 * 6 * head * rows + 4 * 2 * 16 * 16 * rows
    assert found["flop"]["weights"] == pytest.approx(weights)
    assert found["flop"]["attention"] == pytest.approx(
        (4 + 12 + 12 + 4) * 16 * float((lengths.astype(float) ** 2).sum())
    )
