"""The tasks, one value each."""

from __future__ import annotations

from kft.registry import Part, Registry

TASKS = Registry(
    "task",
    "kft.tasks",
    {
        "text_classification": Part(
            "kft.tasks.text:CLASSIFICATION", "one label, or several, of a text or a pair of texts"
        ),
        "text_regression": Part("kft.tasks.text:REGRESSION", "a number for a text or a pair of texts"),
        "token_classification": Part(
            "kft.tasks.tokens:TOKEN_CLASSIFICATION", "a tag for each word, as in named entity recognition"
        ),
        "question_answering": Part(
            "kft.tasks.questions:QUESTION_ANSWERING",
            "the part of a context that answers a question, or that it has no answer",
        ),
        "image_classification": Part("kft.tasks.images:CLASSIFICATION", "one label, or several, of an image"),
    },
)
