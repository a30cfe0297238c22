"""Readers: every format gives the same texts; what is wrong is named with file and line."""

import csv
import gzip
import io
import json
import sys

import pytest

from bert_fast.encode.inputs import InputError, Source

TEXTS = ["plain", "", "with, comma", 'with "quotes"', "Ünïcode 中文 😀", "  spaces  ", "sep\u2028arator\x0b\x85end"]


def write(path, texts, kind):
    if kind == "text":
        path.write_bytes("".join(f"{t}\n" for t in texts).encode())
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    elif kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([["id", "text"], *enumerate(texts)])
    elif kind == "tsv":
        path.write_bytes(("id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts))).encode())
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
        pq.write_table(table, path, row_group_size=3)
    return path


SUFFIX = {"text": "txt", "jsonl": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet"}


@pytest.mark.parametrize("skip", [0, 1, 4, 7, 9])
@pytest.mark.parametrize("kind", SUFFIX)
def test_every_format_gives_the_same_texts(tmp_path, kind, skip):
    source = Source(write(tmp_path / f"in.{SUFFIX[kind]}", TEXTS, kind))
    assert source.kind == kind
    assert list(source.texts(skip)) == TEXTS[skip:]


@pytest.mark.parametrize("kind", SUFFIX)
def test_no_texts(tmp_path, kind):
    path = write(tmp_path / f"in.{SUFFIX[kind]}", [], kind)
    assert list(Source(path).texts()) == []


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "tsv"])
def test_gzip_and_windows_files(tmp_path, kind):
    plain = write(tmp_path / "in", ["a", "b c"], kind).read_bytes()
    windows = b"\xef\xbb\xbf" + plain.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path = tmp_path / f"in.{SUFFIX[kind]}.gz"
    path.write_bytes(gzip.compress(windows))
    source = Source(path)
    assert source.kind == kind
    texts = source.texts()
    assert next(texts) == "a" and source.position() > 0
    assert list(texts) == ["b c"]


def test_last_line_without_line_end_and_csv_fields_over_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo")
    assert list(Source(tmp_path / "a.txt").texts()) == ["one", "two"]
    (tmp_path / "a.csv").write_text('text\n"one\ntwo"\nthree\n\nfour\n')
    assert list(Source(tmp_path / "a.csv").texts()) == ["one\ntwo", "three", "", "four"]
    (tmp_path / "b.csv").write_text("text,id\none,1\n\ntwo,2\n")
    assert list(Source(tmp_path / "b.csv").texts()) == ["one", "two"]


def test_fields_by_name_and_the_only_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "text": "y"}\n\n{"body": "z", "text": ""}\n')
    assert list(Source(tmp_path / "a.jsonl", field="body").texts()) == ["x", "z"]
    (tmp_path / "a.csv").write_text("review\ngood\n")
    assert list(Source(tmp_path / "a.csv").texts()) == ["good"]
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    assert list(Source(tmp_path / "b.csv", field="y").texts()) == ["2"]


def test_a_quotation_mark_in_tsv_is_a_character(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"unbalanced\t1\nnext\t0\n')
    assert list(Source(tmp_path / "a.tsv").texts()) == ['"unbalanced', "next"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\nü\n".encode())))
    source = Source("-")
    assert source.is_stdin and list(source.texts()) == ["a", "ü"]


def test_positions_reach_the_total(tmp_path):
    for kind in SUFFIX:
        source = Source(write(tmp_path / f"in.{SUFFIX[kind]}", TEXTS, kind))
        texts = source.texts()
        next(texts)
        assert source.position() > 0
        for _ in texts:
            pass
        assert source.total is not None
        assert kind != "parquet" or source.position() == source.total == len(TEXTS)


BAD = {
    "not UTF-8": ("a.txt", b"fine\n\xff\xfe\n", None, r"a.txt, line 2: not UTF-8 \(byte 0"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', None, "a.jsonl, line 2: not JSON"),
    "no object": ("a.jsonl", b'["a"]\n', None, "line 1: a JSON object is needed, not a list"),
    "no field": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b", "id": 1}\n',
        None,
        "line 2: no field 'text'; there are 'body', 'id'",
    ),
    "null": ("a.jsonl", b'{"text": null}\n', None, "line 1: field 'text' is null, not a string"),
    "number": ("a.jsonl", b'{"text": 3}\n', None, "line 1: field 'text' is 3"),
    "half a pair": ("a.jsonl", b'{"text": "ab\\ud83d"}\n', None, "line 1: character 2 of 'text' is half a surrogate"),
    "columns": ("a.csv", b"id,text\n1,a\n2,b,c\n", None, "line 3: 3 columns, but the header has 2"),
    "no column": ("a.csv", b"id,body\n1,a\n", None, "no column 'text'; there are 'id', 'body'"),
    "two columns": ("a.csv", b"text,text\n1,a\n", None, "2 columns are named 'text'"),
    "no header": ("a.csv", b"", None, "a.csv is empty: a header line"),
    "quotes": ("a.csv", b'id,text\n1,"a"b\n', None, "line 2: .*expected after"),
    "tabs": ("a.tsv", b"id\ttext\n1\n", None, "line 2: 1 columns, but the header has 2"),
    "gzip": ("a.txt.gz", b"this is not gzip", None, "after line 0: Not a gzipped file"),
    "cut gzip": ("a.txt.gz", gzip.compress(b"abc\n" * 9999)[:-9], None, "after line [0-9]+: Compressed file ended"),
    "no parquet": ("a.parquet", b"PAR1 no it is not", None, "a.parquet is not a Parquet file that can be read"),
    "suffix": ("a.docx", b"", None, "suffix '.docx' says no format"),
    "field of text": ("a.txt", b"", "body", "plain text, which has no field 'body'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path, case):
    name, data, field, message = BAD[case]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(Source(tmp_path / name, field=field).texts())


def test_an_unbalanced_quote_does_not_swallow_a_big_file(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"' + "x" * 99 + "\n" * 10 + ("y" * 999 + "\n") * 20000)
    with pytest.raises(InputError, match="a.csv, line [0-9]+: field larger than field limit"):
        list(Source(tmp_path / "a.csv").texts())


def test_bad_parquet_columns_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [1, 2], "a": ["x", None], "b": ["y", "z"]}), tmp_path / "a.parquet")
    for field, message in {
        None: "no column 'text'; there are 'a', 'b'",
        "n": "column 'n' is int64, not string",
        "a": "row 2: column 'a' is null",
    }.items():
        with pytest.raises(InputError, match=message):
            list(Source(tmp_path / "a.parquet", field=field).texts())
    encoded = pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode()})
    pq.write_table(encoded, tmp_path / "b.parquet")
    assert list(Source(tmp_path / "b.parquet").texts()) == ["x", "y", "x"]


def test_missing_files_and_unknown_formats(tmp_path):
    with pytest.raises(InputError, match="no such file: .*nowhere.txt"):
        Source(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="format 'xml': allowed are text, jsonl"):
        Source("-", "xml")
    with pytest.raises(InputError, match="Parquet cannot be read from standard input"):
        Source("-", "parquet")
