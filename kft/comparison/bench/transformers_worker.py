"""The same job with transformers' Trainer, in a process of its own: same files, rows, batch size, length and schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kft import backend as backends
from kft import metrics, pipeline
from kft.backbones.folders import ModelFolder, locate
from kft.comparison.bench import clock as clocks
from kft.comparison.bench import flop, memory, reference, transformers_data
from kft.comparison.bench.clock import Clock, Step
from kft.comparison.bench.transformers_data import Job
from kft.comparison.bench.worker import Told, chosen, use_caches
from kft.data import load as load_data
from kft.data.table import Table
from kft.errors import ModelError
from kft.metrics.context import Context
from kft.progress import Progress
from kft.recipe import validate
from kft.tasks import TASKS
from kft.tasks import targets as targets_


def measure(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Trains, evaluates and predicts with transformers, and returns the figures.

    Args:
        job: `recipe`, `backend` (the runner's name), `steps` (None: all), `folder` to write in, `caches`, `started`.
        say: hears what is being done.
    """
    progress = Told(say)
    progress.seconds["import"] = time.time() - job["started"]
    use_caches(job)
    installed = _imported(progress)
    work = _job(job, progress)
    tokenizer, model = _loaded(work, progress)
    with progress.phase("encode"):
        train = transformers_data.encode(work, work.splits.train, tokenizer)
    collator, clock = transformers_data.Collator(work, tokenizer), Clock()
    with progress.phase("build"):
        trainer = _trainer(work, model, tokenizer, train, collator, _listener(clock, progress), job)
    to_training = time.time() - job["started"]
    progress.started("train")
    clock.started = time.perf_counter()
    trainer.train()
    peak = {"host": memory.host_peak(), "gpu": memory.gpu_peak("torch")}
    figures = _figures(work, trainer, collator, clock)
    quality = _quality(work, trainer, tokenizer, progress) if job["steps"] is None else None
    with progress.phase("save"):
        trainer.save_model(str(Path(job["folder"]) / "saved"))
    return {
        **installed,
        "phases": progress.seconds | {"compile": figures["compile"], "train": figures["seconds"] - figures["compile"]},
        "to_first_step": to_training + clock.first_step - clock.started,
        "train": figures,
        "predict": _predict(work, model, tokenizer, progress, job["steps"]),
        "memory": peak,
        "quality": quality,
        "data": work.splits.sha256(),
        "notes": transformers_data.notes(work, train),
    }


def _imported(progress: Progress) -> dict[str, Any]:
    """Imports transformers and returns what it runs on."""
    with progress.phase("import"):
        import accelerate
        import torch
        import transformers

        versions = {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
        gpu = f"gpu: {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else None
    return {"device": [gpu or "cpu"], "versions": backends.versions() | versions, "threads": torch.get_num_threads()}


def _loaded(work: Job, progress: Progress) -> tuple[Any, Any]:
    import transformers

    folder = _folder(work, progress)
    transformers.set_seed(work.recipe.seed)
    with progress.phase("load model"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder.path))
        model = _model(work, folder.path)
        _freeze(model, work.stage.trainable)
    return tokenizer, model


def _job(job: Mapping[str, Any], progress: Progress) -> Job:
    recipe = validate(job["recipe"], "recipe")
    task = TASKS.load(recipe.task)
    with progress.phase("load data"):
        splits = load_data(
            recipe.data, seed=recipe.seed, modality=task.modality, targets=task.targets, progress=progress
        )
        target = targets_.study(splits, recipe.data, task.targets)
        recipe = pipeline.with_inputs(recipe, task.columns(splits.train, recipe.data))
    stage = max(reversed(recipe.stages), key=lambda each: each.epochs)
    return Job(recipe, stage, task, target, splits, pipeline.metric_names(recipe, task, target), job["backend"])


def _folder(work: Job, progress: Progress) -> ModelFolder:
    with progress.phase("load model"):
        folder = locate(str(work.recipe.model.preset), work.recipe.model.sha256, progress)
    if folder.format != "hugging_face":
        raise ModelError(f"Not available: '{folder.handle}' is not a Hugging Face folder, which transformers reads.")
    return folder


def _model(work: Job, path: Path) -> Any:
    import transformers

    kind = "TokenClassification" if work.target.kind == "tags" else "SequenceClassification"
    config = transformers.AutoConfig.from_pretrained(str(path), num_labels=work.target.outputs, **_problem(work))
    rate = work.recipe.model.dropout
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if rate is not None and hasattr(config, name):
            setattr(config, name, rate)
    maker = getattr(transformers, f"AutoModelFor{kind}")
    return (
        maker.from_pretrained(str(path), config=config) if work.recipe.model.pretrained else maker.from_config(config)
    )


def _problem(work: Job) -> dict[str, str]:
    known = {
        "labels": "single_label_classification",
        "multi_label": "multi_label_classification",
        "values": "regression",
    }
    return {"problem_type": known[work.target.kind]} if work.target.kind in known else {}


def _freeze(model: Any, trainable: str) -> None:
    """Freezes what the recipe does not train; the head, and what follows the blocks, is always trained."""
    if trainable == "all":
        return
    blocks = flop.blocks(model)
    wanted = 0 if trainable == "head" else int(trainable.removeprefix("top:"))
    for parameter in model.base_model.parameters():
        parameter.requires_grad = False
    upper = [*blocks[len(blocks) - wanted :], getattr(model.base_model, "pooler", None)] if wanted else []
    for part in upper:
        for parameter in part.parameters() if part is not None else ():
            parameter.requires_grad = True


def _trainer(
    work: Job, model: Any, tokenizer: Any, train: Sequence[Any], collator: Any, listener: Any, job: Mapping[str, Any]
) -> Any:
    import transformers

    steps, epochs = job["steps"], work.stage.epochs
    options = transformers.TrainingArguments(
        str(Path(job["folder"]) / "trainer"), **reference.arguments(work.recipe, epochs, steps, work.runner)
    )
    if steps is not None:
        train = transformers_data.sample(train, steps * work.recipe.train.batch_size, work.recipe.seed)
    return transformers.Trainer(
        model, options, train_dataset=train, data_collator=collator, processing_class=tokenizer, callbacks=[listener]
    )


def _listener(clock: Clock, progress: Progress) -> Any:
    import torch
    import transformers

    class Listener(transformers.TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            clock.epoch_begins()

        def on_substep_end(self, *_: Any, **__: Any) -> None:
            clock.step_ends()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.step_ends()
            progress.advance(state.global_step, state.max_steps)

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.epoch_ends()

    return Listener()


def _figures(work: Job, trainer: Any, collator: Any, clock: Clock) -> dict[str, Any]:
    durations = clock.durations()
    seen = collator.seen[: len(durations)]
    # Without a compiler only the very first step differs; with dynamic padding nearly every batch has a shape of its own.
    steps = [Step("any", len(lengths), int(sum(lengths)), length) for length, lengths in seen]
    found = clocks.figures(clock, steps)
    operations = flop.of_torch(trainer.model).training(np.concatenate([lengths for _, lengths in seen]))
    every, elapsed = work.recipe.train.gradient_accumulation, clock.elapsed()
    lines = [line for line in trainer.state.log_history if "loss" in line and line["step"] * every <= len(elapsed)]
    losses = [(round(elapsed[line["step"] * every - 1], 3), line["loss"]) for line in lines]
    return {**found, "shapes": len({shape for shape, _ in seen}), "flop": operations, "losses": losses}


def _quality(work: Job, trainer: Any, tokenizer: Any, progress: Progress) -> dict[str, dict[str, float]]:
    context, found = Context(labels=work.target.labels, positive=work.target.positive), {}
    with progress.phase("evaluate"):
        for split, table in work.splits.items():
            if split != "train":
                output = trainer.predict(transformers_data.encode(work, table, tokenizer))
                scores = metrics.score(work.names, *transformers_data.comparable(output, work.target), context)
                found[split] = {"loss": float(output.metrics["test_loss"]), **scores}
    return found


def _predict(work: Job, model: Any, tokenizer: Any, progress: Progress, steps: int | None) -> dict[str, Any]:
    import transformers

    splits, recipe = work.splits, work.recipe
    table: Table = chosen(splits.validation or splits.test or splits.train, recipe, steps)
    kind = "token-classification" if work.target.kind == "tags" else "text-classification"
    pipe = transformers.pipeline(
        kind,
        model=model.eval(),
        tokenizer=tokenizer,
        batch_size=recipe.train.evaluation_batch_size,
        device=model.device,
    )
    raw = transformers_data.raw(work, table)
    # The pipeline for tokens cuts at the tokenizer's own maximum and takes no argument for it.
    tokenizer.model_max_length = recipe.model.sequence_length
    more = {} if work.target.kind == "tags" else {"truncation": True, "max_length": recipe.model.sequence_length}
    progress.started("predict")
    start = time.perf_counter()
    pipe(raw, **more)
    middle = time.perf_counter()
    pipe(raw, **more)
    end = time.perf_counter()
    tokens = sum(len(row["input_ids"]) for row in transformers_data.encode(work, table, tokenizer))
    return {"examples": len(table), "tokens": tokens, "first_seconds": middle - start, "seconds": end - middle}
