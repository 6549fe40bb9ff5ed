from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kft.data import SOURCES
from kft.errors import KftError
from kft.exporters import EXPORTERS
from kft.metrics import METRICS, Metric
from kft.registry import Part, Registry
from kft.tasks import TASKS
from kft.tasks.task import Task

MODULE = """
def load(location, options, modality="text", progress=None):
    return "from outside"
"""
ENTRY_POINTS = """\
[kft.data]
parquetlike = kft_outside_parts:load
csv = kft_outside_parts:load
absent = kft_outside_missing:load
nameless = kft_outside_parts:nothing
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another distribution, installed as pip would leave it, that adds data sources."""
    about = tmp_path / "kft_outside-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kft-outside\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "kft_outside_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "kft_outside_parts", raising=False)
    return tmp_path


def test_a_part_of_another_package_is_found_and_loaded(outside: Path) -> None:
    assert "parquetlike" in SOURCES and "parquetlike" in list(SOURCES)
    assert SOURCES["parquetlike"].summary == "from kft-outside"
    assert SOURCES.load("parquetlike")("x", None) == "from outside"


def test_listing_the_parts_of_another_package_imports_none(outside: Path) -> None:
    assert SOURCES.parts()["parquetlike"].path == "kft_outside_parts:load"
    assert "kft_outside_parts" not in sys.modules


def test_a_part_of_kft_cannot_be_replaced(outside: Path) -> None:
    assert SOURCES["csv"].path == "kft.data.files:load_csv"
    assert SOURCES.load("csv").__module__ == "kft.data.files"


@pytest.mark.parametrize("name", ["absent", "nameless"])
def test_a_broken_part_of_another_package_is_one_line_that_names_it(outside: Path, name: str) -> None:
    with pytest.raises(KftError, match=f"data source '{name}', from kft-outside, does not load") as caught:
        SOURCES.load(name)
    assert "\n" not in str(caught.value)


def test_parts_are_gone_with_their_package() -> None:
    assert "parquetlike" not in SOURCES


def test_a_missing_extra_says_what_to_install() -> None:
    part = Part("json:loads", "needs what nobody has", "tfds", ("json", "no_such_module_here"))
    registry = Registry("data source", "kft.data", {"odd": part})
    with pytest.raises(KftError) as caught:
        registry.load("odd")
    assert str(caught.value) == (
        "The data source 'odd' needs no_such_module_here, not installed here. "
        'Type: pip install "keras-finetune[tfds]"'
    )


def test_an_unknown_name_lists_what_there_is_and_offers_the_nearest() -> None:
    with pytest.raises(KftError, match="Unknown task 'text_clasification'. Did you mean 'text_classification'?") as got:
        TASKS["text_clasification"]
    assert all(name in str(got.value) for name in TASKS)


LISTED = [
    *(("task", name) for name in TASKS),
    *(("data source", name) for name in SOURCES),
    *(("metric", name) for name in METRICS),
]
TABLES = {"task": TASKS, "data source": SOURCES, "metric": METRICS, "format": EXPORTERS}


def test_no_table_is_empty() -> None:
    least = {"format": 1}
    assert {kind: len(list(table)) >= least.get(kind, 4) for kind, table in TABLES.items()} == dict.fromkeys(
        TABLES, True
    )


@pytest.mark.parametrize(("kind", "name"), LISTED)
def test_every_listed_part_loads_or_says_its_extra(kind: str, name: str) -> None:
    table = TABLES[kind]
    part = table[name]
    assert part.summary and "\n" not in part.summary
    if missing := part.missing():
        with pytest.raises(KftError) as caught:
            table.load(name)
        assert missing[0] in str(caught.value) and f"keras-finetune[{part.extra}]" in str(caught.value)
        return
    loaded = table.load(name)
    if kind == "data source":
        assert callable(loaded)
    else:
        assert isinstance(loaded, Task if kind == "task" else Metric)


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_goes_by_the_name_and_summary_it_is_listed_with(name: str) -> None:
    task: Task = TASKS.load(name)
    assert (task.name, task.summary) == (name, TASKS[name].summary)
    assert task.metrics and all(metric in METRICS for names in task.metrics.values() for metric in names)


@pytest.mark.backend
@pytest.mark.parametrize("name", list(EXPORTERS))
def test_every_format_loads(backend: str, name: str) -> None:
    assert EXPORTERS[name].summary and callable(EXPORTERS.load(name))
