"""What a job should take, from what its parts took."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kft.comparison.plan_costs import Costs, Job, Shape, StageCosts, count, expected, seconds_of
from kft.data.batches import Batches
from kft.data.encoded import Encoded, Ragged
from kft.recipe import validate


def costs(begin: float = 1.0, first: float = 5.0, step: float = 0.5) -> Costs:
    train = (Shape(16, first, (step,) * 3), Shape(64, first, (4 * step,) * 3))
    stage = StageCosts(begin, train, (Shape(16, 2.0, (0.25, 0.25)),), score=1.5, keep=0.75)
    start = {"python": 0.5, "import": 2.0}
    job = Job(320, (2,), 32, ({16: 16.0, 64: 4.0},), {"validation": {16: 2}}, 0)
    return Costs(start, (stage,), score=0.5, save=0.25, host_bytes=1, gpu_bytes=None, seconds=20, job=job)


def test_a_job_takes_the_sum_of_its_parts() -> None:
    job = Job(320, (2,), 32, ({16: 16.0, 64: 4.0},), {"validation": {16: 2}, "test": {16: 4}}, 0)
    assert expected(costs(), job) == pytest.approx(
        {
            "start": 2.5,
            "compile": 1 + (5 - 0.5) + (5 - 2) + (2 - 0.25),  # beginning, two lengths to train on, one to predict
            "train": 16 * 0.5 + 4 * 2.0,
            "evaluate": 2 * (2 * 0.25 + 0.5) + (1.5 - 0.5) + 4 * 0.25 + 0.5,  # two epochs, the first one dearer; test
            "save": 2 * 0.75 + 0.25,
        }
    )


def test_a_frozen_part_is_computed_once_and_the_test_split_goes_through_the_whole_model() -> None:
    found = costs()
    stage = replace(found.stages[0], once=(Shape(16, 3.0, (1.0, 1.0)),))
    found = replace(found, stages=(stage,), after=(Shape(16, 4.0, (1.5, 1.5)),))
    job = Job(320, (2,), 32, ({16: 16.0, 64: 4.0},), {"validation": {16: 2}, "test": {16: 4}}, 0, None, {16: 5})
    plain = Job(320, (2,), 32, ({16: 16.0, 64: 4.0},), {"validation": {16: 2}, "test": {16: 4}}, 0)
    seconds, before = expected(found, job), expected(costs(), plain)
    assert seconds["train"] == pytest.approx(before["train"] + (5 + 2) * 1.0)  # of training and of validation
    assert seconds["compile"] == pytest.approx(before["compile"] + (3 - 1) + (4 - 1.5))
    assert seconds["evaluate"] == pytest.approx(before["evaluate"] + 4 * (1.5 - 0.25))
    assert Costs.read(json.loads(json.dumps(found.dump()))) == found
    longer = Job(3200, (4,), 32).like(replace(found.job, once={16: 5}))
    assert longer.once == {16: 50}  # however many epochs there are


def test_lengths_between_and_beyond_those_measured() -> None:
    measured = [Shape(16, 9.0, (1.0,)), Shape(64, 9.0, (4.0,))]
    assert [seconds_of(measured, length) for length in (8, 16, 40, 64, 128)] == [0.5, 1.0, 2.5, 4.0, 8.0]
    flat = [Shape(16, 9.0, (1.0,)), Shape(64, 9.0, (1.0,))]
    assert seconds_of(flat, 8) == 1.0


def test_the_first_steps_after_compilation_do_not_count_where_there_are_more() -> None:
    assert Shape(8, 30.0, (9.0, 1.0, 1.1, 0.9)).steady == 1.0
    assert Shape(8, 0.5, (1.0, 1.0)).once == 0.0


def test_a_longer_job_of_unknown_lengths_is_like_the_measured_one() -> None:
    longer = Job(3200, (4,), 32)
    assert longer.steps == 400
    found = longer.like(costs().job)
    assert found.train == ({16: 320.0, 64: 80.0},) and found.evaluate == {"validation": {16: 20}}
    assert expected(costs(), longer)["train"] == pytest.approx(20 * expected(costs(), costs().job)["train"])


def test_a_length_that_was_not_measured_is_compiled_only_where_each_one_is() -> None:
    ladder = Job(320, (1,), 32, ({16: 1.0, 40: 1.0, 64: 1.0},))
    assert expected(costs(), ladder)["compile"] == pytest.approx(1 + 4.5 + 3 + 3)
    free = Job(320, (1,), 32, ({16: 1.0, 40: 1.0, 64: 1.0},), multiple=1)
    assert expected(costs(), free)["compile"] == pytest.approx(1 + 4.5 + 3)


def test_noise_is_the_usual_distance_from_the_usual_step() -> None:
    assert costs().noise == 0
    stage = StageCosts(0, (Shape(8, 1, (1.0, 1.0, 0.9, 1.1, 1.2, 0.8)),), (), 0, 0)
    assert Costs({}, (stage,), 0, 0, 0, None, 0, costs().job).noise == pytest.approx(1.4826 * 0.1)


def test_costs_survive_json() -> None:
    assert Costs.read(json.loads(json.dumps(costs().dump()))) == costs()


def test_a_job_counts_the_batches_a_run_makes() -> None:
    rng = np.random.default_rng(0)
    rows = [np.arange(length) for length in rng.integers(4, 40, size=100)]
    encoded = Encoded({"token_ids": Ragged.of(rows, np.int32)})
    recipe = validate(
        {
            "task": "text_classification",
            "model": {"preset": "any"},
            "data": {"source": "any.csv"},
            "train": {
                "batch_size": 8,
                "stages": [{"trainable": "head", "epochs": 1}, {"epochs": 2}],
                "checkpoint_every": 5,
            },
        },
        "recipe",
    )
    batches = Batches(encoded, 8, (16, 40))
    job = count(recipe, 100, batches, {"validation": Batches(encoded, 64, (16, 40), shuffle=False)})
    assert job.steps == 13 * 3 and job.checkpoints == 39 // 5
    lengths = [length for epoch in range(3) for _, length in batches.plan(epoch)]
    assert job.train is not None
    for length in (16, 40):
        assert sum(counts[length] for counts in job.train) == pytest.approx(lengths.count(length))
    assert sum(job.evaluate["validation"].values()) == 2
    assert Job.read(json.loads(json.dumps(job.dump()))) == job
