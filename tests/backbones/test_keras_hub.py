"""Pretrained models come in with the weights, tokens and pooling that their makers gave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

TEXTS = ["the film was very good", "a bad book and a broken phone, quite terrible", "so"]
PARTNERS = ["it was great", "the table", "the film was very lovely and the book was fine"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokenizer_of(vocabulary: Path, style: str) -> Any:
    """Makes a word-piece tokenizer whose special tokens stand as a family of models has them."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (vocabulary / "vocab.txt").read_text(encoding="utf8").split()
    if style == "roberta":  # these count positions from the padding's id on, which is always 1
        words[0], words[1] = words[1], words[0]
    bert = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(words)})
    inner = tokenizers.Tokenizer.from_str(bert.to_str())
    ids = {name: inner.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    pair = {"bert": "[CLS] $A [SEP] $B:1 [SEP]:1", "roberta": "[CLS] $A [SEP] [SEP] $B [SEP]", "plain": "$A $B"}[style]
    single = "$A" if style == "plain" else "[CLS] $A [SEP]"
    special = [] if style == "plain" else list(ids.items())
    inner.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    special_names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **special_names, padding_side="right", model_input_names=inputs
    )


def config_of(family: str, words: int) -> Any:
    import transformers as t

    common = {"vocab_size": words, "max_position_embeddings": 40}
    configs: dict[str, Callable[[], Any]] = {
        "bert": lambda: t.BertConfig(**common, **SIZES),
        "roberta": lambda: t.RobertaConfig(**common, **SIZES, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5),
        "xlm-roberta": lambda: t.XLMRobertaConfig(
            **common, **SIZES, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
        ),
        "camembert": lambda: t.CamembertConfig(
            **common, **SIZES, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
        ),
        "electra": lambda: t.ElectraConfig(**common, **SIZES, embedding_size=8),
        "distilbert": lambda: t.DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
        "albert": lambda: t.AlbertConfig(**common, **SIZES, embedding_size=8),
        "gpt2": lambda: t.GPT2Config(vocab_size=words, n_positions=40, n_embd=16, n_layer=2, n_head=2),
    }
    return configs[family]()


STYLES = {
    "bert": "bert",
    "albert": "bert",
    "distilbert": "bert",
    "electra": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
}


@pytest.fixture(scope="module")
def folder_of(
    backend: str, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Any, Any]]:
    """Gives the folder of a tiny random model of a family, with transformers' own model and tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made: dict[str, tuple[Path, Any, Any]] = {}

    def make(family: str) -> tuple[Path, Any, Any]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            tokenizer = tokenizer_of(vocabulary, STYLES.get(family, "plain"))
            torch.manual_seed(0)
            whole = transformers.AutoModelForSequenceClassification.from_config(config_of(family, len(tokenizer)))
            model = whole.base_model.eval()
            # Fresh biases and norms are 0 and 1, which would hide that two of them were mixed up.
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight) * 0.05)
            # With a head, as models are published: for most families KerasHub knows no other names.
            whole.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[family] = (folder, model, tokenizer)
        return made[family]

    return make


def ours(backbone: Any, columns: list[list[str]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns each text's hidden states, cut to its tokens, and its token ids, as a run would compute them."""
    from kft.backbones.tokenizer import pack
    from kft.data.batches import Batches
    from kft.data.encoded import Encoded, Ragged

    ids, starts, _ = pack(backbone.tokenizer, columns, 40)
    encoded = Encoded(
        inputs={"token_ids": Ragged.of(ids, np.int32), "segment_starts": starts},
        padding={"token_ids": backbone.tokenizer.pad_id},
    )
    batches = Batches(encoded, len(ids), rungs=(32,), shuffle=False, inputs=backbone.inputs)
    inputs, _, _ = batches.make(np.arange(len(ids)), 32)
    found = backbone.model.predict_on_batch(inputs)
    found = found["sequence_output"] if isinstance(found, dict) else found
    return [np.asarray(row)[: len(own)] for row, own in zip(found, ids, strict=True)], ids


@pytest.mark.parametrize("family", [*STYLES, "gpt2"])
@pytest.mark.parametrize("texts", [1, 2], ids=["single", "pair"])
def test_hidden_states_are_those_of_transformers(
    folder_of: Callable[[str], tuple[Path, Any, Any]], same: Callable[..., None], family: str, texts: int
) -> None:
    import torch

    folder, model, tokenizer = folder_of(family)
    backbone = kft.load_backbone(str(folder))
    columns = [TEXTS, PARTNERS][:texts]
    states, ids = ours(backbone, columns)
    inputs = tokenizer(*columns, padding=True, return_tensors="pt")
    if family in ("gpt2", "distilbert"):
        inputs.pop("token_type_ids", None)
    if STYLES.get(family) == "roberta":
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state.numpy()
    for row, (state, own) in enumerate(zip(states, ids, strict=True)):
        mask = inputs["attention_mask"][row].bool()
        np.testing.assert_array_equal(own, inputs["input_ids"][row][mask].numpy())
        same("Hugging Face", family, state, theirs[row][mask.numpy()])


@pytest.mark.parametrize("family", STYLES)
def test_a_model_saved_without_a_head_has_the_same_weights(
    folder_of: Callable[[str], tuple[Path, Any, Any]], family: str, tmp_path: Path
) -> None:
    folder, model, tokenizer = folder_of(family)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    states, _ = ours(kft.load_backbone(str(tmp_path)), [TEXTS])
    again, _ = ours(kft.load_backbone(str(tmp_path)), [TEXTS])  # from the copy in the cache
    wanted, _ = ours(kft.load_backbone(str(folder)), [TEXTS])
    for state, second, other in zip(states, again, wanted, strict=True):
        np.testing.assert_allclose(state, other, atol=1e-6)
        np.testing.assert_array_equal(state, second)


def test_images_are_scaled_and_seen_as_transformers_does(same: Callable[..., None], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import keras

    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, layer_norm_eps=1e-3)
    whole = transformers.ViTForImageClassification(config).eval()
    model = whole.base_model
    whole.save_pretrained(tmp_path)
    mean, deviation = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    values = {"image_mean": mean, "image_std": deviation, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf8")
    backbone = kft.load_backbone(str(tmp_path))
    assert (backbone.modality, backbone.images.size, backbone.inputs) == ("image", (16, 16), ("images",))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    scaled = ((pixels / 255 - mean) / deviation).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(scaled.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    from kft.tasks.heads import _normalization

    normalized = _normalization(backbone.images)(pixels)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(normalized), scaled, atol=1e-4)
    found = keras.ops.convert_to_numpy(backbone.model(normalized, training=False))
    same("Hugging Face", "vit", found, theirs)


def test_pooling_is_what_the_makers_read_off(folder_of: Callable[[str], tuple[Path, Any, Any]]) -> None:
    assert kft.load_backbone(str(folder_of("bert")[0])).pooling == "pooled"
    assert kft.load_backbone(str(folder_of("roberta")[0])).pooling == "first"
    assert kft.load_backbone(str(folder_of("gpt2")[0])).pooling == "last"


def test_a_sentence_transformers_folder_is_read_by_its_mean(
    folder_of: Callable[[str], tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "sentences"
    shutil.copytree(folder_of("bert")[0], folder)
    (folder / "1_Pooling").mkdir()
    values = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values), encoding="utf8")
    assert kft.load_backbone(str(folder)).pooling == "mean"


def test_the_mean_counts_no_padding(folder_of: Callable[[str], tuple[Path, Any, Any]], quick: dict) -> None:
    import keras

    from kft.tasks.heads import pool

    backbone = kft.load_backbone(str(folder_of("bert")[0]))
    ids = np.asarray([[2, 9, 3, 0, 0], [2, 9, 10, 11, 3]], np.int32)
    inputs = {"token_ids": ids, "padding_mask": (ids > 0).astype(np.int32), "segment_ids": np.zeros_like(ids)}
    states = backbone.model(inputs, training=False)
    tokens = keras.ops.convert_to_numpy(states["sequence_output"])
    mean = keras.ops.convert_to_numpy(pool(states, inputs, "mean"))
    np.testing.assert_allclose(mean[0], tokens[0, :3].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(mean[1], tokens[1].mean(axis=0), atol=1e-5)
    last = keras.ops.convert_to_numpy(pool(states, inputs, "last"))
    np.testing.assert_allclose(last, np.stack([tokens[0, 2], tokens[1, 4]]), atol=1e-6)


def test_random_weights_of_a_pretrained_models_configuration(folder_of: Callable[[str], tuple[Path, Any, Any]]) -> None:
    import keras

    folder = str(folder_of("bert")[0])
    trained, fresh = kft.load_backbone(folder), kft.load_backbone(folder, pretrained=False)
    assert [weight.shape for weight in trained.model.weights] == [weight.shape for weight in fresh.model.weights]
    kernel = keras.ops.convert_to_numpy(fresh.model.get_layer("token_embedding").embeddings)
    assert not np.allclose(kernel, keras.ops.convert_to_numpy(trained.model.get_layer("token_embedding").embeddings))
    again = kft.load_backbone(folder, pretrained=False).model.get_layer("token_embedding").embeddings
    np.testing.assert_array_equal(kernel, keras.ops.convert_to_numpy(again))


def test_the_dropout_of_a_preset_can_be_changed(folder_of: Callable[[str], tuple[Path, Any, Any]]) -> None:
    import keras

    for family in ("bert", "roberta"):
        folder = str(folder_of(family)[0])
        for wanted, expected in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
            model = kft.load_backbone(folder, dropout=wanted).model
            layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dropout)]
            assert {layer.rate for layer in layers} == {expected}


# KerasHub's own folders


@pytest.fixture
def preset(backend: str, vocabulary: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A folder as KerasHub saves it, with the tokenizer's files as its presets have them."""
    import keras_hub

    words = (vocabulary / "vocab.txt").read_text(encoding="utf8")
    model = keras_hub.models.BertBackbone(
        vocabulary_size=len(words.split("\n")) - 1,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=32,
    )
    folder = tmp_path / "preset"
    model.save_to_preset(str(folder))
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    (assets / "vocabulary.txt").write_text(words, encoding="utf8")
    values = {"module": "keras_hub", "class_name": "BertTokenizer", "config": {"lowercase": True}}
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf8")
    return folder, model


def test_a_keras_hub_folder_comes_back_as_it_was_saved(preset: tuple[Path, Any]) -> None:
    import keras

    folder, model = preset
    backbone = kft.load_backbone(str(folder))
    assert type(backbone.model) is type(model)
    assert backbone.origin["format"] == "keras_hub" and len(backbone.origin["sha256"] or "") == 64
    for found, saved in zip(backbone.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), keras.ops.convert_to_numpy(saved))
    ids = backbone.tokenizer.tokenize(["The film"])[0]
    words = (folder / "assets" / "tokenizer" / "vocabulary.txt").read_text(encoding="utf8").split("\n")
    assert [words[i] for i in ids] == ["the", "film"]


def test_a_preset_trains_in_a_recipe(
    preset: tuple[Path, Any], quick: dict, variant: Callable[..., dict], backend: str, tmp_path: Path
) -> None:
    changes = {
        "backend": backend,
        "model": {"preset": str(preset[0]), "sequence_length": 8, "trainable": "head"},
        "train.epochs": 1,
        "output.directory": str(tmp_path / "run"),
    }
    report = kft.run(variant(quick, changes))
    digest = json.loads((report.run / "report.json").read_text(encoding="utf8"))["sha256"]["weights"]
    assert digest == kft.load_backbone(str(preset[0])).origin["sha256"]


# What cannot be used


def test_an_unknown_architecture_is_refused_with_the_nearest(backend: str) -> None:
    with pytest.raises(ModelError, match=r"Unknown model.architecture 'BertBackbon'. Did you mean 'BertBackbone'"):
        kft.load_backbone(pretrained=False, architecture="BertBackbon")


def test_a_configuration_that_does_not_fit_names_the_arguments(backend: str, vocabulary: Path) -> None:
    with pytest.raises(ModelError, match="model.config does not fit BertBackbone: .*Its arguments: vocabulary_size"):
        kft.load_backbone(
            pretrained=False, architecture="BertBackbone", config={"num_layers": 1}, tokenizer=str(vocabulary)
        )


def test_a_text_model_needs_a_tokenizer(quick: dict, backend: str) -> None:
    config = quick["model"]["config"]
    with pytest.raises(ModelError, match="BertBackbone reads text: give model.tokenizer"):
        kft.load_backbone(pretrained=False, architecture="BertBackbone", config=config)


def test_an_encoder_with_a_decoder_is_refused(quick: dict, vocabulary: Path, backend: str) -> None:
    config = {
        "vocabulary_size": 80,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "max_sequence_length": 16,
    }
    backbone = kft.load_backbone(
        pretrained=False, architecture="BartBackbone", config=config, tokenizer=str(vocabulary)
    )
    with pytest.raises(ModelError, match="BartBackbone is not an encoder: it has the input 'decoder_"):
        kft.build_model(kft.load_data(quick["data"]["source"]), backbone)


def test_an_image_model_does_not_read_text(quick: dict, backend: str) -> None:
    config = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64],
        "stackwise_num_blocks": [1],
        "stackwise_num_strides": [1],
        "block_type": "basic_block",
        "image_shape": [8, 8, 3],
    }
    backbone = kft.load_backbone(pretrained=False, architecture="ResNetBackbone", config=config)
    with pytest.raises(ModelError, match="text_classification needs a backbone for text; this one is for image"):
        kft.build_model(kft.load_data(quick["data"]["source"]), backbone)


def test_a_model_without_a_pooler_refuses_to_be_pooled(folder_of: Callable[..., Any], quick: dict) -> None:
    backbone = kft.load_backbone(str(folder_of("distilbert")[0]))
    with pytest.raises(ModelError, match="this backbone has no pooler. Allowed: first, mean, last"):
        kft.build_model(kft.load_data(quick["data"]["source"]), backbone, pooling="pooled")


def test_a_family_that_keras_hub_cannot_convert_is_named(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "funnel"}), encoding="utf8")
    with pytest.raises(ModelError, match="is a funnel, which kft does not read"):
        kft.load_backbone(str(tmp_path), tokenizer=str(vocabulary))


def test_weights_of_another_shape_are_refused(folder_of: Callable[..., Any], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(folder_of("bert")[0], folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}), encoding="utf8")
    with pytest.raises(ModelError, match=r"word_embeddings.weight has the shape \(82, 16\), but config.json asks for"):
        kft.load_backbone(str(folder))
