"""What of a recipe transformers' Trainer can be given as it is; loads nothing."""

from __future__ import annotations

import importlib.util
from typing import Any

from kft.recipe import Recipe

TASKS = ("text_classification", "text_regression", "token_classification")
OPTIMIZERS = {"adamw": None, "adam": None, "adafactor": "adafactor"}
GROUPED = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}


def refusal(recipe: Recipe, steps: int | None = None) -> str | None:
    """Returns why the same job cannot be run with transformers, or None if it can."""
    missing = [name for name in ("transformers", "accelerate", "torch") if importlib.util.find_spec(name) is None]
    train = recipe.train
    if recipe.task not in TASKS:
        return f"Not available: the Trainer is set up for {', '.join(TASKS)}, not for {recipe.task}."
    if recipe.model.preset is None:
        return "Not available: it needs a Hugging Face folder, and the recipe has no model.preset."
    if len(recipe.stages) > 1 and steps is None:
        return "Not available: the Trainer has no stages; the recipe has train.stages."
    if train.class_weights != "none":
        return "Not available: the Trainer has no class weights; the recipe has train.class_weights."
    if train.optimizer not in OPTIMIZERS:
        return f"Not available: the Trainer has no train.optimizer={train.optimizer}."
    if train.precision not in ("float32", "mixed_bfloat16", "mixed_float16"):
        return f"Not available: train.precision={train.precision} is not set up for the Trainer."
    if missing:
        return f'Not installed here: {", ".join(missing)}. Type: pip install "keras-finetune[bench,torch]"'
    return None


def arguments(recipe: Recipe, trainable_epochs: int, steps: int | None, runner: str) -> dict[str, Any]:
    """Returns the Trainer's arguments for a recipe; what the recipe does not say keeps the Trainer's default."""
    train = recipe.train
    schedule = {"constant": "constant_with_warmup" if train.warmup else "constant"}.get(train.schedule, train.schedule)
    found: dict[str, Any] = {
        "num_train_epochs": trainable_epochs,
        "per_device_train_batch_size": train.batch_size,
        "per_device_eval_batch_size": train.evaluation_batch_size,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay if train.optimizer != "adam" else 0.0,
        "adam_epsilon": train.epsilon,
        "lr_scheduler_type": schedule,
        "warmup_steps": train.warmup if train.warmup < 1 else int(train.warmup),
        "max_grad_norm": train.clip_norm or 0.0,
        "label_smoothing_factor": train.label_smoothing,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "seed": recipe.seed,
        "bf16": train.precision == "mixed_bfloat16",
        "fp16": train.precision == "mixed_float16",
        "logging_steps": train.log_every,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if steps is not None:
        found["max_steps"] = max(1, steps // train.gradient_accumulation)
    if OPTIMIZERS[train.optimizer]:
        found["optim"] = OPTIMIZERS[train.optimizer]
    grouped = GROUPED if runner.endswith("-grouped") else {}
    return found | {name: value for name, value in grouped.items() if name != "optim" or "optim" not in found}
