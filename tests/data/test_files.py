from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kft.data import files, reading, sources
from kft.data.table import Table
from kft.errors import DataError
from kft.recipe import Data


def read(file: Path, content: str | bytes, **options: Any) -> Table:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (table,) = sources.load(str(file), Data(source=str(file), **options)).values()
    return table


def refused(file: Path, content: str | bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(file, content, **options)
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_csv_values_are_strings_and_rows_know_their_line(tmp_path: Path) -> None:
    content = 'text,label\r\n"a, ""quoted""\r\ntwo lines",1\r\n\r\nplain,\r\n'
    table = read(tmp_path / "reviews.csv", content)
    assert table.column("text") == ['a, "quoted"\r\ntwo lines', "plain"]
    assert table.column("label") == ["1", ""]
    assert [table.where(row) for row in range(2)] == ["reviews.csv line 2", "reviews.csv line 5"]
    assert table.root == tmp_path


def test_csv_reads_what_pythons_writer_wrote(tmp_path: Path) -> None:
    rows = [["x" * 200_000, "a"], ['"', ","], ["\u2028 \x85 é", "\t"], ["  spaces ", "\n"]]
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    limit = csv.field_size_limit()
    table = read(tmp_path / "t.csv", (tmp_path / "t.csv").read_bytes())
    assert [list(row) for row in zip(table.column("text"), table.column("label"), strict=True)] == rows
    assert csv.field_size_limit() == limit


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", b"\xef\xbb\xbftext,label\na,b\n").names == ["text", "label"]
    assert read(tmp_path / "u.csv", "text,label\na,b\n".encode("utf-16"), encoding="utf-16").names == ["text", "label"]


@pytest.mark.parametrize(("row", "received"), [("a,b,c", 3), ("a", 1)])
def test_a_csv_row_of_another_width(tmp_path: Path, row: str, received: int) -> None:
    said = refused(tmp_path / "t.csv", f'text,label\n"x\ny",b\n{row}\n')
    assert f"t.csv line 4: expected 2 fields as in the header (text, label), received {received}" in said
    assert read(tmp_path / "fine.csv", "text,label\na,b\n").names == ["text", "label"]  # nothing is held on to


def test_broken_csv_quoting_names_the_line_it_began_on(tmp_path: Path) -> None:
    assert "t.csv line 3: a quote that opens in this row is never closed" in refused(
        tmp_path / "t.csv", 'text,label\na,b\n"open,b\nc,d\n'
    )
    assert "t.csv line 2: broken quoting" in refused(tmp_path / "t.csv", 'text,label\n"a" b,c\n')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("text,label\n", "no rows"),
        ("text,label,text\na,b,c\n", "names column 'text' twice"),
        ("text,label\na,b\nc\0,d\n", "line 3: a NUL"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_file_of_values_that_cannot_be_used(tmp_path: Path, content: str, said: str, suffix: str) -> None:
    assert said in refused(tmp_path / f"t.{suffix}", content.replace(",", "\t") if suffix == "tsv" else content)


def test_a_wrong_encoding_names_line_byte_and_what_to_type(tmp_path: Path) -> None:
    content = "text,label\nfine,b\ncafé,b\n".encode("latin-1")
    said = refused(tmp_path / "t.csv", content)
    assert "line 3: byte 21 (0xe9) is not utf-8" in said and "data.encoding=latin-1" in said
    assert content[21] == 0xE9
    assert read(tmp_path / "t.csv", content, encoding="latin-1").column("text") == ["fine", "café"]
    assert "data.encoding=utf-16" in refused(tmp_path / "t.csv", "text,label\na,b\n".encode("utf-16"))


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    table = read(tmp_path / "t.tsv", 'text\tlabel\r\n"open, quote\t1\r\n\r\nb\t2\r\n')
    assert table.column("text") == ['"open, quote', "b"]
    assert table.where(1) == "t.tsv line 4"
    assert "line 3: expected 2 fields" in refused(tmp_path / "t.tsv", "text\tlabel\na\tb\na\tb\tc\n")


def test_jsonl_keeps_lists_and_numbers_and_fills_missing_keys(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "score": 1}, {"tokens": [], "score": 2.5, "note": "x\u2028y"}]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = read(tmp_path / "t.jsonl", lines)
    assert table.column("tokens") == [["a", "b"], []]
    assert table.column("score") == [1, 2.5]
    assert table.column("note") == [None, "x\u2028y"]
    assert table.where(1) == "t.jsonl line 3"
    listed = read(tmp_path / "t.json", json.dumps(rows, indent=1))
    assert listed.columns.equals(table.columns) and listed.where(1) == "t.json row 2"
    assert read(tmp_path / "u.json", lines).columns.equals(table.columns)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}\n{"a": }\n', "line 2 column 7: not valid JSON"),
        ('{"a": 1}\n[1]\n', r"line 2: expected a JSON object with keys, received \[1\]"),
        ('{"a": 1}\n\n{"a": "x"}\n', r"line 3: column 'a' holds a value of type str, in .*line 1 it is int"),
        ('{"a": "\\ud800"}\n', "line 1: column 'a' cannot be kept"),
        ("", "no rows"),
    ],
)
def test_jsonl_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    assert re.search(said, refused(tmp_path / "t.jsonl", content))


def test_parquet_keeps_types_and_the_class_names_of_datasets(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["O", "B-x"], "_type": "ClassLabel"}, "_type": "List"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    columns = pa.table({"text": ["a", None], "label": [1, 0], "tags": [[0, 1], []]})
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(columns.replace_schema_metadata(about), tmp_path / "t.parquet")
    table = read(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert table.column("text") == ["a", None] and table.column("label") == [1, 0]
    assert table.class_names == {"label": ("neg", "pos"), "tags": ("O", "B-x")}
    pq.write_table(columns, tmp_path / "plain.parquet")
    assert read(tmp_path / "plain.parquet", (tmp_path / "plain.parquet").read_bytes()).class_names == {}
    assert "as Parquet" in refused(tmp_path / "t.parquet", "text,label\n")


def test_conll_sentences_are_parted_by_blank_lines(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n  \n\nPeter NNP B-PER\n"
    table = read(tmp_path / "t.conll", content)
    assert table.names == ["tokens", "column_2", "tags"]
    assert table.column("tokens") == [["EU", "rejects"], ["Peter"]]
    assert table.column("tags") == [["B-ORG", "O"], ["B-PER"]]
    assert [table.where(row) for row in range(2)] == ["t.conll line 3", "t.conll line 7"]


def test_conll_with_tabs_keeps_spaces_in_tokens(tmp_path: Path) -> None:
    table = read(tmp_path / "t.bio", "a b\tO\r\n\t\r\n#tag\tB-x\r\n")
    assert table.column("tokens") == [["a b"], ["#tag"]]
    assert table.column("tags") == [["O"], ["B-x"]]


def test_conll_of_one_column_has_tokens_only(tmp_path: Path) -> None:
    assert read(tmp_path / "t.txt", "a\nb\n\nc\n").columns.to_pydict() == {"tokens": [["a", "b"], ["c"]]}


def test_conll_that_cannot_be_used(tmp_path: Path) -> None:
    assert "t.conll line 4: expected 2 columns as in line 1, received 1" in refused(
        tmp_path / "t.conll", "a O\nb O\n\nc\n"
    )
    assert "no tokens" in refused(tmp_path / "t.conll", "\n \n")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_file_read_in_many_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    mark = "\t" if suffix == "tsv" else ","
    content = "\n".join([f"text{mark}label", *(f"é {n} \u2028 \U0001f600{mark}{n % 3}" for n in range(50))])
    whole = read(tmp_path / f"t.{suffix}", content)
    monkeypatch.setattr(files, "CHUNK", 7)
    monkeypatch.setattr(reading, "PIECE", 5)
    pieces = read(tmp_path / f"t.{suffix}", content)
    assert pieces.columns.equals(whole.columns) and pieces.sha256() == whole.sha256()
    assert [pieces.where(row) for row in range(50)] == [f"t.{suffix} line {row + 2}" for row in range(50)]
    assert "line 44: expected 2 fields" in refused(tmp_path / f"t.{suffix}", content.replace("é 42 ", mark))
    assert "line 45: a NUL" in refused(tmp_path / f"t.{suffix}", content.replace("é 43", "\0"))
    assert "line 46: byte " in refused(tmp_path / f"t.{suffix}", content.encode().replace("é 44".encode(), b"\xe9"))


def test_an_encoding_without_its_mark_and_the_line_ends_of_old(tmp_path: Path) -> None:
    content = 'text,label\r"a\rb",1\rc,2\r'
    for encoding in ("utf-8", "utf8", "auto", "utf-16", "utf-16-le", "utf-32", "cp1252"):
        written = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "auto": "utf-8"}.get(encoding, encoding)
        table = read(tmp_path / "t.csv", content.encode(written), encoding=encoding)
        assert table.column("text") == ["a\rb", "c"] and table.where(1) == "t.csv line 4"
