"""Trains the reference for a kft recipe with transformers' Trainer and prints its scores as one JSON line.

    python bench/transformers_reference.py mrpc  --model MODEL_FOLDER --data FOLDER --seed 1
    python bench/transformers_reference.py wnut17 --model MODEL_FOLDER --data FOLDER --seed 1 --grouped

The settings are those of the recipes in `examples/`: 3 epochs, batch 32, 5e-5 with linear decay, at most 128 tokens.
`--grouped` groups batches by length and takes torch's fused AdamW; without it the Trainer's defaults stand.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import tempfile
import time

import transformers
from datasets import Dataset


def read_pairs(path: pathlib.Path) -> list[dict]:
    with path.open(encoding="utf8", newline="") as stream:
        return [
            {"a": row["sentence1"], "b": row["sentence2"], "label": int(row["label"] == "equivalent")}
            for row in csv.DictReader(stream)
        ]


def read_sentences(path: pathlib.Path) -> list[dict]:
    sentences: list[dict] = [{"tokens": [], "tags": []}]
    for line in path.read_text(encoding="utf8").split("\n"):
        if line.strip():
            fields = line.split("\t")
            sentences[-1]["tokens"].append(fields[0])
            sentences[-1]["tags"].append(fields[-1].strip())
        elif sentences[-1]["tokens"]:
            sentences.append({"tokens": [], "tags": []})
    return [sentence for sentence in sentences if sentence["tokens"]]


def prepare_mrpc(folder: pathlib.Path, tokenizer):
    from sklearn.metrics import accuracy_score, f1_score

    def encode(rows):
        encoded = tokenizer([r["a"] for r in rows], [r["b"] for r in rows], truncation=True, max_length=128)
        return Dataset.from_dict({**encoded, "labels": [r["label"] for r in rows]})

    def score(output):
        guess = output.predictions.argmax(-1)
        return {"accuracy": accuracy_score(output.label_ids, guess), "f1": f1_score(output.label_ids, guess)}

    parts = [encode(read_pairs(folder / f"{name}.csv")) for name in ("train", "validation", "test")]
    collate = transformers.DataCollatorWithPadding(tokenizer)
    return parts, score, collate, transformers.AutoModelForSequenceClassification, 2


def prepare_wnut17(folder: pathlib.Path, tokenizer):
    from seqeval.metrics import f1_score

    names = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.conll")
    splits = [read_sentences(folder / name) for name in names]
    labels = sorted({tag for split in splits for sentence in split for tag in sentence["tags"]})

    def encode(sentences):
        encoded = tokenizer([s["tokens"] for s in sentences], is_split_into_words=True, truncation=True, max_length=128)
        targets = []
        for index, sentence in enumerate(sentences):
            words, previous, row = encoded.word_ids(index), None, []
            for word in words:
                row.append(-100 if word is None or word == previous else labels.index(sentence["tags"][word]))
                previous = word
            targets.append(row)
        return Dataset.from_dict({**encoded, "labels": targets})

    def score(output):
        guess = output.predictions.argmax(-1)
        truth = [[labels[t] for t in row if t != -100] for row in output.label_ids]
        found = [
            [labels[g] for g, t in zip(left, right, strict=True) if t != -100]
            for left, right in zip(guess, output.label_ids, strict=True)
        ]
        return {"f1": f1_score(truth, found)}

    collate = transformers.DataCollatorForTokenClassification(tokenizer)
    return (
        [encode(split) for split in splits],
        score,
        collate,
        transformers.AutoModelForTokenClassification,
        len(labels),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["mrpc", "wnut17"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grouped", action="store_true")
    arguments = parser.parse_args()
    transformers.set_seed(arguments.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    prepare = {"mrpc": prepare_mrpc, "wnut17": prepare_wnut17}[arguments.job]
    (train, validation, test), score, collate, model_class, size = prepare(arguments.data, tokenizer)
    model = model_class.from_pretrained(arguments.model, num_labels=size)
    grouped = {"train_sampling_strategy": "group_by_length"} if arguments.grouped else {}
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            folder, num_train_epochs=3, per_device_train_batch_size=32, per_device_eval_batch_size=32,
            learning_rate=5e-5, seed=arguments.seed, save_strategy="no", eval_strategy="no", report_to="none",
            disable_tqdm=True, optim="adamw_torch_fused" if arguments.grouped else "adamw_torch", **grouped,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, options, train_dataset=train, data_collator=collate, processing_class=tokenizer
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        scores = {name: score(trainer.predict(part)) for name, part in (("validation", validation), ("test", test))}
    print(json.dumps({"job": arguments.job, "seed": arguments.seed, "seconds": round(seconds, 1), "metrics": scores}))


if __name__ == "__main__":
    main()
