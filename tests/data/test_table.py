from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kft.data import table as table_
from kft.data.table import Table
from kft.errors import DataError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_, "CHUNK", 3)


COLUMNS = {"text": ["a", None, "b", "a", "", "c", "b", "a"], "number": [3, 1, 1, None, 3, 2, 9, 1]}


def chunked(*sizes: int, **fields: Any) -> Table:
    whole, parts = pa.table(COLUMNS), []
    for size in sizes:
        parts.append(whole.slice(0, size))
        whole = whole.slice(size)
    return Table(pa.concat_tables([*parts, whole]), "t.csv", **fields)


@pytest.mark.parametrize("sizes", [(), (1,), (2, 4), (0, 3, 3)])
def test_chunks_do_not_show(sizes: tuple[int, ...]) -> None:
    table, whole = chunked(*sizes), chunked()
    assert table.sha256() == whole.sha256()
    assert table.take([2, 3, 4, 5]).sha256() == whole.take([2, 3, 4, 5]).sha256() != whole.sha256()
    assert table.slice(2, 6).columns.equals(whole.take([2, 3, 4, 5]).columns)
    for name, values in COLUMNS.items():
        assert list(table.cells(name)) == table.column(name) == values
        found = table.codes(name)
        assert found is not None and found[0] == list(dict.fromkeys(values))  # in the order they appear in
        assert [found[0][code] for code in found[1]] == values
        assert [cell for part in table.slices() for cell in part.column(name)] == values


@pytest.mark.parametrize("column", [[[1], [2]], [0.5, float("nan")], [None, None]])
def test_only_plain_columns_have_codes(column: list[Any]) -> None:
    assert Table(pa.table({"x": column}), "t").codes("x") is None
    assert Table(pa.table({"x": [True, False, True]}), "t").codes("x")[0] == [True, False]  # type: ignore[index]


@pytest.mark.parametrize("places", [None, list("abcdefgh"), np.arange(2, 10)])
def test_rows_of_a_slice_know_where_they_came_from(places: Any) -> None:
    table = chunked(2, 4, places=places)
    every = [table.where(row) for row in range(len(table))]
    assert [part.where(row) for part in table.slices() for row in range(len(part))] == every
    assert table.slice(1, 7).slice(2, 4).where(1) == every[4]
    assert every[4] == {0: "t.csv row 5", 1: "e", 2: "t.csv line 6"}[0 if places is None else 1 + (places[0] != "a")]
    if places is not None:
        assert table.take(np.array([5, 0])).where(0) == every[5]


def test_an_unknown_column_is_refused_at_once() -> None:
    for ask in (chunked().cells, chunked().codes, chunked().column, chunked().arrow):
        with pytest.raises(DataError, match="Unknown column 'txet' in t.csv. Did you mean 'text'"):
            ask("txet")
