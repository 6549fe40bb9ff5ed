"""A finished model leaves kft, and transformers computes the same with it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import kft
from kft.cli.group import ROOT
from kft.errors import ModelError, RunFolderError

pytestmark = pytest.mark.backend

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXTS = ["the film was very good", "a bad book and a broken phone, quite terrible", "so"]
PARTNERS = ["it was great", "the table", "the film was very lovely and the book was fine"]
FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "albert",
    "distilbert",
    "deberta-v2",
    "gpt2",
    "llama",
    "modernbert",
)
DEBERTA = {
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
}
MODERNBERT = {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "local_attention": 6,
    "norm_eps": 1e-3,
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": base}
        for kind, base in (("full_attention", 50.0), ("sliding_attention", 20.0))
    },
    **dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0),
}
LATE_PADDING = ("roberta", "xlm-roberta", "camembert")  # these count positions from the padding's id on


@pytest.fixture
def preset(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a tiny random model of a family, as its makers would publish it."""
    torch = pytest.importorskip("torch")
    t = pytest.importorskip("transformers")
    words = (vocabulary / "vocab.txt").read_text(encoding="utf8").split()

    def make(family: str, **changes: Any) -> Path:
        common = {"vocab_size": len(words), "max_position_embeddings": 40}
        late = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
        config = {
            "bert": lambda: t.BertConfig(**common, **SIZES, hidden_act="relu"),
            "roberta": lambda: t.RobertaConfig(**common, **SIZES, **late),
            "xlm-roberta": lambda: t.XLMRobertaConfig(**common, **SIZES, **late),
            "camembert": lambda: t.CamembertConfig(**common, **SIZES, **late),
            "electra": lambda: t.ElectraConfig(**common, **SIZES, embedding_size=8),
            "albert": lambda: t.AlbertConfig(**common, **SIZES, embedding_size=8),
            "distilbert": lambda: t.DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
            "deberta-v2": lambda: t.DebertaV2Config(**common, **SIZES, **DEBERTA),
            "modernbert": lambda: t.ModernBertConfig(**{**common, **SIZES, **MODERNBERT, **changes}),
            "gpt2": lambda: t.GPT2Config(vocab_size=len(words), n_positions=40, n_embd=16, n_layer=2, n_head=2),
            "llama": lambda: t.LlamaConfig(
                **common, **SIZES, num_key_value_heads=1, rms_norm_eps=1e-3, rope_theta=99.0
            ),
        }[family]()
        torch.manual_seed(0)
        model = t.AutoModel.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
        folder = tmp_path / "preset"
        model.save_pretrained(folder)
        own = [words[1], words[0], *words[2:]] if family in LATE_PADDING else words
        (folder / "vocab.txt").write_text("\n".join(own) + "\n", encoding="utf8")
        return folder

    return make


def finished(folder: Path, task: str, labels: tuple[str, ...], **options: Any) -> Any:
    """Builds a model with a random head on a folder, as a run would end with."""
    from kft.exporters.exported import Finished
    from kft.recipe import Data
    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target
    from kft.tasks.task import Encoding

    backbone = kft.load_backbone(str(folder))
    kinds = {"token_classification": "tags", "text_regression": "values", "question_answering": "spans"}
    target = Target(kinds.get(task, "labels"), labels)  # type: ignore[arg-type]
    model = heads.build(TASKS.load(task), backbone, target, seed=1, **options)
    rng = np.random.default_rng(0)
    for layer in heads.head_layers(model, backbone):
        for weight in layer.weights:
            if "seed" not in weight.path:
                weight.assign(rng.normal(0, 0.3, weight.shape).astype("float32"))
    encoding = Encoding(Data(source="reviews.csv", inputs=["text"], target="label"), backbone.tokenizer, 40)
    return Finished(model, task, target, encoding, str(folder))


def inner(run: Any) -> Any:
    import keras

    return next(layer for layer in run.model.layers if isinstance(layer, keras.Model))


def logits(run: Any, columns: list[list[str]]) -> tuple[np.ndarray, list[int]]:
    """Returns kft's own logits in one padded batch, and each text's number of tokens."""
    from kft.backbones.tokenizer import pack
    from kft.data.batches import Batches
    from kft.data.encoded import Encoded, Ragged

    ids, starts, _ = pack(run.encoding.tokenizer, columns, 40)
    encoded = Encoded(
        inputs={"token_ids": Ragged.of(ids, np.int32), "segment_starts": starts},
        padding={"token_ids": run.encoding.tokenizer.pad_id},
    )
    names = tuple(run.model.input.keys())
    inputs, _, _ = Batches(encoded, len(ids), (32,), shuffle=False, inputs=names).make(np.arange(len(ids)), 32)
    return np.asarray(run.model.predict_on_batch(inputs)), [len(row) for row in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_logits(preset: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    import torch
    import transformers

    from kft.exporters.hugging_face import write

    run = finished(preset(family), "text_classification", ("bad", "good", "so so"))
    files = write(run, tmp_path / "out")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so so"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for columns in ([TEXTS], [TEXTS, PARTNERS]):
        own, _ = logits(run, columns)
        inputs = tokenizer(*columns, padding=True, return_tensors="pt")
        with torch.no_grad():
            theirs = model.eval()(**inputs).logits.numpy()
        assert own.std() > 0.05
        np.testing.assert_allclose(theirs, own, atol=1e-4)
    again = kft.load_backbone(str(tmp_path / "out"))  # what was exported is a preset again
    before, after = (np.concatenate([np.ravel(w) for w in m.get_weights()]) for m in (inner(run), again.model))
    np.testing.assert_array_equal(before, after)


def test_modernbert_with_every_bias_that_reads_the_mean(preset: Callable[..., Path], tmp_path: Path) -> None:
    import keras
    import torch
    import transformers

    from kft.exporters.hugging_face import write

    biases = dict.fromkeys(("norm_bias", "mlp_bias", "attention_bias", "classifier_bias"), True)
    acts = {"hidden_activation": "gelu_new", "classifier_activation": "relu"}
    run = finished(
        preset("modernbert", **biases, **acts), "text_classification", ("bad", "good"), pooling="mean", dropout=0.0
    )
    run.model.save(tmp_path / "model.keras")  # a run folder's model has been saved and loaded
    loaded = dataclasses.replace(run, model=keras.saving.load_model(tmp_path / "model.keras"))
    write(loaded, tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.classifier_pooling == "mean" and model.config.local_attention == 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        theirs = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(theirs, logits(run, [TEXTS])[0], atol=1e-4)
    last = finished(tmp_path / "preset", "text_classification", ("bad", "good"), pooling="last")
    with pytest.raises(ModelError, match="ModernBert classes read the first token or the mean"):
        write(last, tmp_path / "last")


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "modernbert"])
def test_what_answers_questions_too(preset: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    import torch
    import transformers

    from kft.exporters.hugging_face import write

    run = finished(preset(family), "question_answering", ())
    write(run, tmp_path / "out")
    model, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    own, _ = logits(run, [PARTNERS, TEXTS])
    inputs = tokenizer(PARTNERS, TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**inputs)
    for mine, other in zip(own.transpose(1, 0, 2), (theirs.start_logits, theirs.end_logits), strict=True):
        real = inputs["attention_mask"].numpy().astype(bool)
        np.testing.assert_allclose(mine[:, : real.shape[1]][real], other.numpy()[real], atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_taggers_too(preset: Callable[[str], Path], family: str, tmp_path: Path) -> None:
    import torch
    import transformers

    from kft.exporters.hugging_face import write

    run = finished(preset(family), "token_classification", ("O", "B-person", "I-person"))
    write(run, tmp_path / "out")
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    own, lengths = logits(run, [TEXTS])
    with torch.no_grad():
        theirs = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(theirs[row, :length], own[row, :length], atol=1e-4)


def test_a_head_that_transformers_does_not_have_is_refused(preset: Callable[[str], Path], tmp_path: Path) -> None:
    from kft.exporters.hugging_face import write

    run = finished(preset("bert"), "text_classification", ("bad", "good"), pooling="mean")
    with pytest.raises(ModelError, match="Train with model.pooling=pooled"):
        write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_roformers_tokenizer_is_refused(preset: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("rjieba")
    from kft.exporters.hugging_face import write

    folder = preset("bert")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RoFormerTokenizer"}')
    with pytest.raises(ModelError, match="RoFormer's tokenizer cannot be exported with a Bert"):
        write(finished(folder, "text_classification", ("bad", "good")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_is_exported_by_the_command(
    preset: Callable[[str], Path], quick: dict, variant: Callable[..., dict], backend: str, tmp_path: Path
) -> None:
    import transformers

    changes = {
        "backend": backend,
        "model": {"preset": str(preset("bert")), "sequence_length": 16, "trainable": "head"},
        "train.epochs": 1,
        "output.directory": str(tmp_path / "run"),
    }
    report = kft.run(variant(quick, changes))
    done = CliRunner().invoke(ROOT, ["export", str(report.run), "--output", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "out")
    own = kft.load_run(report.run).predict(TEXTS)
    pipe = transformers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    for found, theirs in zip(own, pipe(TEXTS), strict=True):
        for label in theirs:
            assert found["probabilities"][label["label"]] == pytest.approx(label["score"], abs=1e-4)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == "text-classification" and "keras" in head["tags"]
    scores = head["model-index"][0]["results"][0]["metrics"]
    assert {score["type"]: score["value"] for score in scores}["accuracy"] == pytest.approx(
        report.metrics["test" if "test" in report.metrics else "validation"]["accuracy"], abs=1e-5
    )
    assert str(tmp_path) not in card.replace(str(tmp_path / "preset"), "")
    again = CliRunner().invoke(ROOT, ["export", str(report.run), "--output", str(tmp_path / "out")])
    assert again.exit_code == 2 and "holds other files; nothing was changed" in again.stderr


def test_an_occupied_folder_and_an_unknown_format(preset: Callable[[str], Path], tmp_path: Path) -> None:
    from kft.exporters import EXPORTERS
    from kft.exporters.hugging_face import write

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf8")
    run = finished(preset("bert"), "text_classification", ("bad", "good"))
    with pytest.raises(RunFolderError, match="nothing was changed"):
        write(run, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text(encoding="utf8") == "mine"
    with pytest.raises(Exception, match="Unknown format 'hugginface'. Did you mean 'huggingface'"):
        EXPORTERS.load("hugginface")
