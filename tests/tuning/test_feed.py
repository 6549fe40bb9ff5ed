"""What `model.fit` is fed: each epoch's batches in that epoch's order, whatever lengths come first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kft.data.batches import Batches
from kft.data.encoded import Encoded, Ragged

pytestmark = pytest.mark.backend

LENGTHS = [3] * 10 + [12] * 22


def batches(seed: int = 0) -> Batches:
    """Returns eight batches of four rows; every row holds its own number."""
    rows = [np.full(length, number) for number, length in enumerate(LENGTHS)]
    encoded = Encoded(inputs={"token_ids": Ragged.of(rows, np.int32)}, targets=np.zeros(len(rows), np.int32))
    return Batches(encoded, 4, (8, 16), seed=seed, inputs=("token_ids", "padding_mask"))


def lengths(found: Batches, epoch: int) -> list[int]:
    return [length for _, length in found.plan(epoch)]


@pytest.fixture
def seen(backend: str) -> Callable[..., list[list[int]]]:
    """Fits a model that counts nothing but tells which rows each step had."""
    import keras

    class Teller(keras.callbacks.Callback):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.table, self.steps = model.get_layer("table"), []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            touched = np.asarray(keras.ops.convert_to_numpy(self.table.embeddings))[:, 0] != 0
            self.steps.append(set(np.flatnonzero(touched).tolist()))

    def fit(feed: Any, **options: Any) -> list[set[int]]:
        ids = keras.Input((None,), dtype="int32", name="token_ids")
        table = keras.layers.Embedding(len(LENGTHS), 2, embeddings_initializer="zeros", name="table")
        mask = keras.Input((None,), dtype="int32", name="padding_mask")
        mean = keras.layers.GlobalAveragePooling1D()(table(ids), mask=mask)
        model = keras.Model({"token_ids": ids, "padding_mask": mask}, mean)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss)
        teller = Teller(model)
        model.fit(feed, callbacks=[teller], shuffle=False, verbose=0, **options)
        return teller.steps

    return fit


def uneven() -> Batches:
    """Returns batches that are of one length in the first epoch and of two in the second."""
    for seed in range(1000):
        found = batches(seed)
        if set(lengths(found, 0)) == {16} and set(lengths(found, 1)) == {8, 16}:
            return found
    raise AssertionError("no seed gives such epochs")


def test_an_epoch_of_one_length_may_be_followed_by_one_of_two(seen: Callable[..., Any]) -> None:
    from kft.tuning.feed import Feed

    found = uneven()
    steps = seen(Feed(found), epochs=2)
    assert len(steps) == 16
    # A row's vector is 0 until the row is first seen; row 0 is also what fills up the short ones.
    known: set[int] = set()
    for step, (rows, _) in zip(steps, found.plan(0), strict=False):
        known |= set(rows.tolist())
        assert step - {0} == known - {0}


def test_what_is_left_of_an_epoch_is_fed_alone(seen: Callable[..., Any]) -> None:
    from kft.tuning.feed import Feed

    for seed in range(3):
        found = batches(seed)
        steps = seen(Feed(found, epoch=3, skip=1), epochs=1)
        rows = [set(rows.tolist()) for rows, _ in found.plan(3)[1:]]
        assert len(steps) == 7
        assert steps[-1] - {0} == set().union(*rows) - {0}


def test_each_epoch_has_its_own_order(backend: str) -> None:
    from kft.tuning.feed import Feed

    feed = Feed(batches())
    orders = []
    for epoch in range(3):
        assert feed.epoch == epoch
        feed.on_epoch_begin()
        orders.append([feed[i][0]["token_ids"][:, 0].tolist() for i in range(len(feed))])
        feed.on_epoch_end()
    for epoch, order in enumerate(orders):
        assert order == [rows.tolist() for rows, _ in batches().plan(epoch)]
    assert orders[0] != orders[1] != orders[2]
