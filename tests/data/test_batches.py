from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from kft.data.batches import RUNGS, STEP, Batches, common_ladder, ladder
from kft.data.encoded import Encoded, Ragged


def of_lengths(lengths: list[int] | np.ndarray, **options: object) -> Encoded:
    """Rows whose tokens say which row they are; the target is the row's number."""
    rows = [np.full(length, number + 1, np.int32) for number, length in enumerate(lengths)]
    targets = np.arange(len(rows), dtype=np.int32)
    return Encoded(inputs={"token_ids": Ragged.of(rows, np.int32)}, targets=targets, **options)  # type: ignore[arg-type]


def some_lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 100, count)


def computed(lengths: np.ndarray, rungs: tuple[int, ...]) -> int:
    """How many tokens are computed when each row is padded to its rung."""
    return sum(next(rung for rung in rungs if rung >= length) for length in lengths)


def test_no_other_ladder_computes_fewer_tokens() -> None:
    rng = random.Random(3)
    for _ in range(40):
        lengths = np.array([rng.randint(1, rng.choice([9, 40, 60])) for _ in range(rng.randint(1, 25))])
        most = rng.randint(1, 4)
        top = -(-int(lengths.max()) // STEP)
        below = range(1, top)
        every = [
            tuple(STEP * rung for rung in (*chosen, top))
            for size in range(most)
            for chosen in itertools.combinations(below, size)
        ]
        rungs = ladder(lengths, most)
        assert computed(lengths, rungs) == min(computed(lengths, other) for other in every)


@pytest.mark.parametrize("lengths", [[5], [8], [9], [128] * 10, [1, 2, 3, 250], list(range(1, 200)), [0, 0]])
def test_a_ladder_is_short_rises_and_holds_the_longest_row(lengths: list[int]) -> None:
    rungs = ladder(np.array(lengths))
    assert 1 <= len(rungs) <= RUNGS and all(rung % STEP == 0 and rung > 0 for rung in rungs)
    assert list(rungs) == sorted(set(rungs))
    assert max(lengths) <= rungs[-1] < max(lengths) + STEP or rungs[-1] == STEP


def test_one_ladder_serves_all_splits_and_images_need_none() -> None:
    short, long = of_lengths([3, 4, 5]), of_lengths([30, 61])
    assert common_ladder([short, long]) == ladder(np.array([3, 4, 5, 30, 61]))
    assert common_ladder([Encoded(inputs={"images": np.zeros((3, 8, 8, 3))})]) == ()


def plans(size: int, count: int = 103, shuffle: bool = True, seed: int = 0, epochs: int = 3) -> list:
    lengths = some_lengths(count)
    batches = Batches(of_lengths(lengths), size, ladder(lengths), seed=seed, shuffle=shuffle)
    return [batches.plan(epoch) for epoch in range(epochs)]


def order(plan: list[tuple[np.ndarray, int]]) -> list[int]:
    return [int(row) for rows, _ in plan for row in rows]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "count"), [(1, 7), (4, 103), (7, 700), (16, 16), (64, 10)])
def test_each_row_comes_exactly_once_an_epoch(size: int, count: int, shuffle: bool) -> None:
    for plan in plans(size, count, shuffle):
        assert sorted(order(plan)) == list(range(count))
        assert len(plan) == -(-count // size)
        assert sorted(len(rows) for rows, _ in plan)[1:] == [size] * (len(plan) - 1)


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    first, again, other = plans(8), plans(8), plans(8, seed=1)
    assert [order(plan) for plan in first] == [order(plan) for plan in again]
    every = [order(plan) for plan in first + other]
    assert len({tuple(rows) for rows in every}) == len(every)
    assert order(first[2]) == order(Batches(of_lengths(some_lengths(103)), 8, ladder(some_lengths(103))).plan(2))


def test_without_shuffling_the_order_never_changes() -> None:
    first, second, _ = plans(8, shuffle=False)
    assert order(first) == order(second)


def test_no_row_is_longer_than_its_batch_and_no_batch_is_longer_than_it_has_to_be() -> None:
    lengths = some_lengths(103)
    rungs = ladder(lengths)
    for plan in plans(8):
        for rows, length in plan:
            assert length == min(rung for rung in rungs if rung >= lengths[rows].max())


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "count"), [(2, 9), (8, 103), (5, 41), (3, 6)])
def test_the_longest_batch_comes_first_and_one_of_another_length_second(size: int, count: int, shuffle: bool) -> None:
    for plan in plans(size, count, shuffle, epochs=5):
        lengths = [length for _, length in plan]
        assert lengths[0] == max(lengths)
        assert len(set(lengths)) == 1 or lengths[1] != lengths[0]


def test_rows_of_like_length_share_batches() -> None:
    lengths = some_lengths(2000)
    batches = Batches(of_lengths(lengths), 8, ladder(lengths))
    padded = sum(length * len(rows) for rows, length in batches.plan(0))
    mixed = Batches(of_lengths(lengths), 8, (ladder(lengths)[-1],))
    assert padded < 0.75 * sum(length * len(rows) for rows, length in mixed.plan(0))


def test_the_last_batch_is_filled_up_with_rows_of_no_weight() -> None:
    encoded = of_lengths([5, 9, 3, 12, 7])
    batches = Batches(encoded, 4, (16,), shuffle=False)
    made = [batches.make(*planned) for planned in batches.plan(0)]
    assert [weights.sum() for _, _, weights in made] == [4, 1]
    for inputs, targets, weights in made:
        assert inputs["token_ids"].shape == (4, 16) and targets is not None and weights.dtype == np.float32
        assert len(targets) == len(weights) == 4
    assert made[1][2].tolist() == [1, 0, 0, 0]
    seen = sorted(int(t) for _, targets, weights in made for t, w in zip(targets, weights, strict=True) if w)  # type: ignore[arg-type]
    assert seen == [0, 1, 2, 3, 4]


def test_a_single_row_fills_a_batch() -> None:
    inputs, targets, weights = Batches(of_lengths([3]), 4, (8,)).make(np.array([0]), 8)
    assert inputs["token_ids"].shape == (4, 8) and weights.tolist() == [1, 0, 0, 0]
    assert targets is not None and targets.tolist() == [0, 0, 0, 0]


def test_masks_segments_and_padding() -> None:
    rows = [np.array([2, 7, 3, 8, 9, 3]), np.array([2, 7, 3])]
    starts = np.array([3, 3], np.int32)  # the second row has one segment only
    encoded = Encoded(
        inputs={"token_ids": Ragged.of(rows, np.int32), "segment_starts": starts}, padding={"token_ids": 1}
    )
    inputs, targets, weights = Batches(encoded, 2, (8,)).make(np.array([0, 1]), 8)
    assert targets is None and weights.tolist() == [1, 1]
    assert inputs["token_ids"].tolist() == [[2, 7, 3, 8, 9, 3, 1, 1], [2, 7, 3, 1, 1, 1, 1, 1]]
    assert inputs["padding_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 3 + [0] * 5]
    assert inputs["segment_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0] * 8]
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int32)}


def test_a_third_segment_begins_where_it_is_said_to() -> None:
    rows = [np.array([7, 4, 8, 9, 4, 3]), np.array([7, 4, 3])]
    starts = np.array([[2, 5], [2, 2]], np.int32)  # the second row has no second segment
    encoded = Encoded(inputs={"token_ids": Ragged.of(rows, np.int32), "segment_starts": starts})
    inputs, _, _ = Batches(encoded, 2, (8,)).make(np.array([0, 1]), 8)
    assert inputs["segment_ids"].tolist() == [[0, 0, 1, 1, 1, 2, 0, 0], [0, 0, 2, 0, 0, 0, 0, 0]]
    assert inputs["segment_ids"].dtype == np.int32


def test_only_the_inputs_the_model_takes_are_given() -> None:
    encoded = of_lengths([3, 4])
    inputs, _, _ = Batches(encoded, 2, (8,), inputs=("token_ids", "padding_mask")).make(np.array([1, 0]), 8)
    assert list(inputs) == ["token_ids", "padding_mask"]
    assert inputs["token_ids"][:, 0].tolist() == [2, 1]


def test_classes_become_one_hot_rows_and_weigh_what_they_should() -> None:
    encoded = Encoded(inputs={"images": np.arange(3)[:, None]}, targets=np.array([2, 0, 1], np.int32))
    batches = Batches(encoded, 4, classes=3, class_weights=(1.0, 2.0, 0.5))
    inputs, targets, weights = batches.make(np.array([0, 1, 2]), 0)
    assert targets is not None and targets.dtype == np.float32
    assert targets[:3].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert weights.tolist() == [0.5, 1, 2, 0]
    assert inputs["images"].shape == (4, 1) and "padding_mask" not in inputs


def test_tags_weigh_by_word_and_by_class_and_padding_weighs_nothing() -> None:
    tags = Ragged.of([np.array([0, 1, 0, 0]), np.array([0, 2, 0])], np.int32)
    words = Ragged.of([np.array([0.0, 1, 1, 0]), np.array([0.0, 1, 0])], np.float32)
    encoded = Encoded(inputs={"token_ids": tags}, targets=tags, weights=words)
    _, targets, weights = Batches(encoded, 3, (8,), classes=3, class_weights=(3.0, 5.0, 7.0)).make(np.array([1, 0]), 8)
    assert targets is not None and targets.shape == (3, 8, 3)
    assert weights[:2].tolist() == [[0, 7, 0, 0, 0, 0, 0, 0], [0, 5, 3, 0, 0, 0, 0, 0]]
    assert weights[2].tolist() == [0] * 8
    assert targets[0, 1].tolist() == [0, 0, 1] and targets[1, 1].tolist() == [0, 1, 0]


def test_a_backend_that_compiles_no_shapes_pads_to_the_longest_row() -> None:
    lengths = some_lengths(700)
    rungs = ladder(lengths)
    few = Batches(of_lengths(lengths), 8, rungs).plan(1)
    for multiple in (1, 8):
        exact = Batches(of_lengths(lengths), 8, rungs, multiple).plan(1)
        assert [rows.tolist() for rows, _ in exact] == [rows.tolist() for rows, _ in few]  # the same batches
        for rows, length in exact:
            assert lengths[rows].max() <= length < lengths[rows].max() + multiple and length % multiple == 0


def test_a_model_that_sees_no_padding_gets_one_length() -> None:
    lengths = [3, 9, 17, 40, 5, 6]
    for multiple in (None, 1):
        batches = Batches(of_lengths(lengths), 2, ladder(np.array(lengths)), multiple, inputs=("token_ids",))
        assert {length for _, length in batches.plan(0)} == {40}
        masked = Batches(
            of_lengths(lengths), 2, ladder(np.array(lengths)), multiple, inputs=("token_ids", "padding_mask")
        )
        assert len({length for _, length in masked.plan(0)}) > 1
