"""Batches as what `model.fit` takes. Import after `backend.activate`."""

from __future__ import annotations

from typing import Any

import keras

from kft.data.batches import Batch, Batches


class Feed(keras.utils.PyDataset):  # type: ignore[misc]
    """The batches of a split as a Keras data set; each epoch has its own order, decided by seed and epoch.

    Pass it to `fit` with `shuffle=False`: Keras would shuffle the batches with numbers of its own.

    Args:
        batches: cuts the batches.
        epoch: the epoch to begin with.
        skip: batches of that epoch to leave out, for going on in its middle.
    """

    def __init__(self, batches: Batches, epoch: int = 0, skip: int = 0) -> None:
        super().__init__()
        self.batches = batches
        self.begin(epoch, skip)
        self._before_epoch = True

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Takes up an epoch's order, without its first `skip` batches."""
        self.epoch, self._plan = epoch, self.batches.plan(epoch)[skip:]
        self._through = self._before_epoch = False

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Batch | tuple[Any, ...]:
        rows, length = self._plan[index]
        # Keras on TensorFlow looks at two batches beforehand, to learn which dimensions vary; they may be of one length
        # where those of another epoch are not.
        if self._before_epoch and index == 1 and length == self._plan[0][1] > 0:
            length += 1
        self._through = index == len(self._plan) - 1
        inputs, targets, weights = self.batches.make(rows, length)
        return (inputs,) if targets is None else (inputs, targets, weights)

    def on_epoch_begin(self) -> None:
        """Ends what Keras does before an epoch."""
        self._before_epoch = False

    def on_epoch_end(self) -> None:
        """Goes on to the next epoch's order; Keras calls this before the first epoch too, having looked at a batch or two."""
        if self._through:
            self.begin(self.epoch + 1)
        self._before_epoch = True
