"""Writes an encoder with its head as transformers reads it. Import after `backend.activate`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from kft import rundir
from kft.backbones import encoder
from kft.backbones.encoder import Encoder
from kft.backbones.engines import FastEngine, WordEngine
from kft.backbones.hugging_face import FAMILIES, Family, published_name
from kft.backbones.places import places
from kft.backbones.tokenizer import Template
from kft.errors import ModelError
from kft.exporters import card, leaving
from kft.exporters.exported import EACH_TOKEN, Finished
from kft.exporters.leaving import Leaving

CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "electra": "Electra",
    "albert": "Albert",
    "distilbert": "DistilBert",
}
KINDS = {
    "text_classification": "SequenceClassification",
    "text_regression": "SequenceClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
}
PROBLEMS = {
    "labels": "single_label_classification",
    "multi_label": "multi_label_classification",
    "values": "regression",
}
# What transformers calls a SentencePiece model, and the class that reads it.
SENTENCE_PIECE = {
    "albert": ("spiece.model", "AlbertTokenizer"),
    "xlm-roberta": ("sentencepiece.bpe.model", "XLMRobertaTokenizer"),
    "camembert": ("sentencepiece.bpe.model", "CamembertTokenizer"),
    "deberta-v2": ("spm.model", "DebertaV2Tokenizer"),
}


def write(run: Finished, folder: Path) -> list[str]:
    """Writes `config.json`, `model.safetensors`, the tokenizer's files and a model card.

    Args:
        run: what is handed on.
        folder: appears whole or not at all.

    Returns:
        The names of the files.

    Raises:
        ModelError: if the model has no counterpart in transformers.
        RunFolderError: if the folder holds something already, or cannot be written.
    """
    rundir.refuse_occupied(folder)
    found = _leaving(run)
    with rundir.explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder.parent))
        try:
            save_file(found.tensors, str(temporary / "model.safetensors"), metadata={"format": "pt"})
            _write_json(temporary / "config.json", _config(run, found))
            _tokenizer(run, found, temporary)
            (temporary / "README.md").write_text(card.text(run, f"{found.cls}For{KINDS[run.task]}"), encoding="utf8")
            if folder.exists():
                folder.rmdir()
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return sorted(file.name for file in folder.iterdir())


def _leaving(run: Finished) -> Leaving:
    if run.task not in KINDS:
        raise ModelError(f"A model for {run.task} cannot be exported to transformers yet. Allowed: {', '.join(KINDS)}.")
    inner = [layer for layer in run.model.layers if isinstance(layer, keras.Model)]
    if inner and leaving.known(inner[0]):
        return leaving.leaving(run, inner[0])
    backbone, shape, name = _encoder(run, inner)
    tensors = _tensors(run, backbone, shape, FAMILIES[name], name)
    return Leaving(name, CLASSES[name], tensors, _fields(run, shape, name), shape.positions, bool(shape.segments))


def _encoder(run: Finished, inner: Sequence[Any]) -> tuple[Any, Encoder, str]:
    shape = encoder.measures(inner[0]) if inner else None
    name = (
        (shape.name if shape else inner[0].name if inner else run.model.name)
        .replace("_", "-")
        .removesuffix("-backbone")
    )
    if shape is None or name not in FAMILIES:
        raise ModelError(
            f"The backbone '{name}' cannot be exported to transformers yet. Allowed: {', '.join(sorted(FAMILIES))}, loaded "
            "from a folder in Hugging Face's layout, and deberta-v3, gpt2, llama, modernbert."
        )
    return inner[0], shape, name


def _tensors(run: Finished, inner: Any, shape: Encoder, family: Family, name: str) -> dict[str, np.ndarray]:
    found = {}
    for place in places(inner, shape, family.names):
        if run.task in EACH_TOKEN and place.name.startswith(f"{family.names.pooler}."):
            continue  # transformers' classes that read each token have none
        found[family.prefix + place.name] = leaving.value(place)
    if family.skipped({"pad_token_id": 0}):
        position, segment = (f"{family.prefix}{part}.weight" for part in (family.names.position, family.names.segment))
        unused = np.zeros((_skipped(run, family), shape.embedding_width or shape.width), np.float32)
        found[position] = np.concatenate([unused, found[position]])
        if not shape.segments:
            found[segment] = np.zeros((1, unused.shape[1]), np.float32)  # its vector is in every position
    return found | _head(run, shape, name)


def _skipped(run: Finished, family: Family) -> int:
    tokenizer = run.encoding.tokenizer
    return family.skipped({"pad_token_id": tokenizer.pad_id if tokenizer is not None else 0})


def _head(run: Finished, shape: Encoder, name: str) -> dict[str, np.ndarray]:
    layers = {layer.name: layer for layer in run.model.layers}
    if run.task in EACH_TOKEN:
        return leaving.head(layers["logits"], EACH_TOKEN[run.task])
    head = FAMILIES[name].head
    if not head.dense:
        if "head_dense" in layers or "mean_pooling" in layers or not shape.pooler:
            raise ModelError(
                f"transformers' {CLASSES[name]}ForSequenceClassification reads the pooler, and this model does not. Train with "
                "model.pooling=pooled."
            )
        return leaving.head(layers["logits"], head.logits)
    if "head_dense" not in layers:
        raise ModelError(
            f"transformers' {CLASSES[name]}ForSequenceClassification reads the first token, and this model does not. Train "
            "with model.pooling=first."
        )
    return leaving.head(layers["head_dense"], head.dense) | leaving.head(layers["logits"], head.logits)


def _config(run: Finished, found: Leaving) -> dict[str, Any]:
    pad = run.encoding.tokenizer.pad_id if run.encoding.tokenizer is not None else 0
    labels = run.target.labels or {"spans": ("LABEL_0", "LABEL_1")}.get(run.target.kind, ("value",))
    problem = {} if run.task in EACH_TOKEN else {"problem_type": PROBLEMS[run.target.kind]}
    return {
        "architectures": [f"{found.cls}For{KINDS[run.task]}"],
        "model_type": found.name,
        "pad_token_id": pad,
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        **problem,
        **found.fields,
    }


def _fields(run: Finished, shape: Encoder, name: str) -> dict[str, Any]:
    activation = published_name(shape.activation)
    found: dict[str, Any] = {
        "vocab_size": shape.vocabulary_size,
        "max_position_embeddings": shape.positions + _skipped(run, FAMILIES[name]),
    }
    if name == "distilbert":
        return found | {
            "dim": shape.width,
            "n_layers": shape.layers,
            "n_heads": shape.heads,
            "hidden_dim": shape.inner,
            "activation": activation,
            "dropout": shape.dropout,
            "attention_dropout": shape.attention_dropout,
        }
    found |= {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "hidden_act": activation,
        "layer_norm_eps": shape.epsilon,
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": shape.attention_dropout,
        "type_vocab_size": shape.segments or 1,
    }
    if name == "electra":
        found["embedding_size"] = shape.embedding_width or shape.width
    if name == "albert":
        found["embedding_size"] = shape.embedding_width
        found |= {"num_hidden_groups": shape.groups, "inner_group_num": shape.repeated}
    return found


def _tokenizer(run: Finished, found: Leaving, folder: Path) -> None:
    tokenizer = run.encoding.tokenizer
    if tokenizer is None:
        return
    values: dict[str, Any] = {"model_max_length": found.positions, "padding_side": "right"}
    if isinstance(tokenizer.engine, WordEngine):
        raise ModelError(
            f"RoFormer's tokenizer cannot be exported with a {found.cls}: its file cannot say where rjieba cuts. Train with "
            "another model.tokenizer."
        )
    if isinstance(tokenizer.engine, FastEngine):
        inner = tokenizers.Tokenizer.from_str(tokenizer.engine.inner.to_str())
        if inner.post_processor is None:
            inner.post_processor = _template(tokenizer.template, inner)
        inner.save(str(folder / "tokenizer.json"))
        special = {
            "pad_token": inner.id_to_token(tokenizer.pad_id),
            "unk_token": inner.id_to_token(tokenizer.unknown_id),
        }
        values |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{key: token for key, token in special.items() if token},
        }
        values["model_input_names"] = ["input_ids", *(["token_type_ids"] if found.segments else []), "attention_mask"]
    else:
        file, values["tokenizer_class"] = SENTENCE_PIECE[found.name]
        shutil.copyfile(tokenizer.engine.file, folder / file)
    _write_json(folder / "tokenizer_config.json", values)


def _template(template: Template, inner: tokenizers.Tokenizer) -> Any:
    """Returns what puts the special tokens around texts, as kft does it."""
    second = 1 if template.segments else 0

    def tokens(ids: Sequence[int], segment: int) -> list[str]:
        return [f"{inner.id_to_token(number)}:{segment}" for number in ids]

    first, rest = template.between[: template.between_first], template.between[template.between_first :]
    single = [*tokens(template.prefix, 0), "$A:0", *tokens(template.suffix, 0)]
    between = [*tokens(first, 0), *tokens(rest, second)]
    pair = [*tokens(template.prefix, 0), "$A:0", *between, f"$B:{second}", *tokens(template.suffix, second)]
    ids = sorted({*template.prefix, *template.between, *template.suffix})
    special = [(inner.id_to_token(number), number) for number in ids]
    return tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
