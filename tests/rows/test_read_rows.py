"""Rows: every format gives the same dictionaries; bad rows are named, or left out and counted; memory stays flat."""

import csv
import gzip
import io
import json
import re
import sys
import tracemalloc

import pytest
from checkpoints.shared_data import SHARED

from bert_fast.rows import InputError, read_rows
from bert_fast.rows.errors import Bad

ROWS = [
    {"id": str(i), "text": t} for i, t in enumerate(["plain", "", "a, b", 'q"q"', "Ünïcode 中文 😀", "  s\u2028p "])
]
SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet")


def write(path, rows):
    kind = path.name.split(".")[1]
    if kind == "jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif kind == "json":
        data = json.dumps(rows).encode()
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(4, len(rows) // 8))
        return path
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            if kind == "csv":
                csv.writer(file).writerows([list(rows[0]), *(row.values() for row in rows)])
            else:
                file.writelines("\t".join(line) + "\n" for line in [list(rows[0]), *(row.values() for row in rows)])
        data = path.read_bytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("kind", [*SUFFIXES, "jsonl.gz", "csv.gz"])
def test_every_format_gives_the_same_rows_as_often_as_asked(tmp_path, kind):
    rows = read_rows(write(tmp_path / f"a.{kind}", ROWS))
    assert list(rows) == list(rows) == ROWS
    assert rows.skipped == 0
    texts = read_rows(tmp_path / f"a.{kind}", columns={"sentence": "text"})
    assert list(texts) == [{"sentence": row["text"]} for row in ROWS]
    assert list(read_rows(tmp_path / f"a.{kind}", columns=["id"])) == [{"id": row["id"]} for row in ROWS]


def test_json_of_every_form_is_told_by_its_beginning(tmp_path):
    long = [{"id": "1", "text": "x" * 10_000}, {"id": "2", "text": ""}]
    for text in (
        "".join(json.dumps(row) + "\n" for row in long),
        json.dumps(long),
        "\ufeff" + json.dumps(long, indent=1),
        "\n" + json.dumps(long, indent=1),
    ):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        assert list(read_rows(tmp_path / "a.json")) == long


def test_standard_input(monkeypatch):
    for format, text, expected in [
        (None, "one\ntwo", [{"text": "one"}, {"text": "two"}]),
        ("jsonl", '{"a": 1}\n', [{"a": 1}]),
        ("csv", "a,b\n1,2\n", [{"a": "1", "b": "2"}]),
        ("conll", "a X\n", [{"tokens": ["a"], "labels": ["X"]}]),
    ]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert list(read_rows("-", format)) == expected
    for format in ("json", "parquet"):
        with pytest.raises(InputError, match="cannot be read from standard input"):
            list(read_rows("-", format))


def test_several_files_follow_each_other(tmp_path):
    paths = [write(tmp_path / "a.csv", ROWS[:2]), write(tmp_path / "b.jsonl", ROWS[2:])]
    rows = read_rows(paths)
    assert list(rows) == ROWS
    assert rows.where == f"{paths[1]}, line 4"


def test_plain_text_and_tables_without_a_header_or_with_other_marks(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    assert list(read_rows(tmp_path / "a.txt")) == [{"text": "one"}, {"text": ""}, {"text": "two"}]
    (tmp_path / "a.tsv").write_text('1\t"a ""b"""\n')
    assert list(read_rows(tmp_path / "a.tsv", header=["n", "t"])) == [{"n": "1", "t": '"a ""b"""'}]
    assert list(read_rows(tmp_path / "a.tsv", header=["n", "t"], quotes=True)) == [{"n": "1", "t": 'a "b"'}]
    (tmp_path / "a.csv").write_text("n;t\n1;x,y\n")
    assert list(read_rows(tmp_path / "a.csv", delimiter=";")) == [{"n": "1", "t": "x,y"}]


# file name, content, the good rows' ids, and for each bad row what is said of it
HOSTILE = {
    "jsonl": (
        "a.jsonl",
        b'{"id": 1}\nnot json\n{"id": 2}\n[3]\n\n{"other": 4}\n\xff\xfe\n{"id": "\\ud800"}\n'
        + b'{"id": ' + b"[" * 100_000 + b"\n" + b'{"id": 5}\n{"id": 6',
        [1, 2, 5],
        ["line 2: not JSON", "line 4: a JSON object is needed, not a list", "line 6: no field 'id'; there are 'other'",
         "line 7: not UTF-8", "line 8: character 0 of 'id' is half a surrogate", "line 9: not JSON",
         "line 11: not JSON"],
    ),
    "csv": (
        "a.csv",
        b'id,t\n1,a\n2\n3,b,c\n4,"x"y\n5,\xff\n6,"two\nlines"\n7,z\n',
        ["1", "6", "7"],
        ["line 3: 1 columns, but the header has 2", "line 4: 3 columns", "line 5: ", "line 6: not UTF-8"],
    ),
    "tsv": ("a.tsv", b'id\tt\n1\t"a\n2\n3\tb\n', ["1", "3"], ["line 3: 1 columns"]),
    "text": ("a.txt", b"a\n\xc3\nb\n", ["a", "b"], ["line 2: not UTF-8"]),
    "json": ("a.json", b'[{"id": 1}, 2, {"id": 3}, {"x": 4}]', [1, 3], ["row 2: an object is needed, not a int",
                                                                    "row 4: no field 'id'"]),
    "conll": (
        "a.conll",
        b"-DOCSTART- -X-\n\na X\nb\n\nc Y\n\n\n  \n\xff Z\n\nd W\ne V",
        [["c"], ["d", "e"]],
        ["line 3: (in line 4) 1 columns, but the first token has 2", "line 10: (in line 10) not UTF-8"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_bad_rows_are_named_or_left_out_and_counted(tmp_path, kind):
    name, data, good, problems = HOSTILE[kind]
    (tmp_path / name).write_bytes(data)
    field = {"text": "text", "conll": "tokens"}.get(kind, "id")
    columns = None if kind == "conll" else [field]
    rows = read_rows(tmp_path / name, columns=columns, on_bad_row="skip")
    first = re.escape(f"{name}, {problems[0]}")
    with pytest.warns(UserWarning, match=f"skipped {len(problems)} bad rows; the first: .*{first}") as said:
        assert [row[field] for row in rows] == good
    assert rows.skipped == len(problems) and len(said) == 1
    with pytest.raises(InputError, match=first):
        list(read_rows(tmp_path / name, columns=columns))
    ((_, reader),) = rows._readers
    found = [(place, value.problem) for place, value in reader() if isinstance(value, Bad)]
    for (place, problem), expected in zip(found, problems, strict=True):
        assert f"{f'line {place}' if isinstance(place, int) else place}: {problem}".startswith(expected)


FATAL = {
    "open quote": ("a.csv", b'id,t\n1,a\n2,"b\n3,c\n4,d\n', "line 3: .* quotation mark that does not close"),
    "no header": ("a.csv", b"", "a.csv is empty: a header line"),
    "no column": ("a.csv", b"x,y\n1,2\n", "no column 'id'; there are 'x', 'y'"),
    "twice": ("a.csv", b"id,id\n1,2\n", "2 columns are named 'id'"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 9999)[:-9], "after line [0-9]+: Compressed file ended"),
    "no parquet": ("a.parquet", b"PAR1 no it is not", "is not a Parquet file"),
    "json": ("a.json", b'[{"id": 1},', "a.json: not JSON"),
    "no squad": ("a.json", b'{"version": 2}', "not in SQuAD's form"),
}


@pytest.mark.parametrize("case", FATAL)
def test_what_is_wrong_with_a_whole_file_is_an_error_always(tmp_path, case):
    name, data, message = FATAL[case]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name, columns=["id"], on_bad_row="skip"))


def test_a_functions_value_error_makes_a_row_bad(tmp_path):
    rows = read_rows(write(tmp_path / "a.csv", [{"n": "1"}, {"n": "x"}, {"n": "3"}]), on_bad_row="skip")
    numbers = rows.map(lambda row: int(row["n"])).map(lambda n: n + 1)
    with pytest.warns(UserWarning, match="skipped 1 bad rows; the first: .*a.csv, line 3: invalid literal"):
        assert list(numbers) == [2, 4]
    with pytest.raises(InputError, match="a.csv, line 3: invalid literal"):
        list(read_rows(tmp_path / "a.csv").map(lambda row: int(row["n"])))
    with pytest.raises(KeyError, match="m"):
        list(rows.map(lambda row: row["m"]))


def test_conll_columns(tmp_path):
    (tmp_path / "a.conll").write_text("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n")
    expected = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]
    assert [(row["tokens"], row["labels"]) for row in read_rows(tmp_path / "a.conll")] == expected
    chosen = read_rows(tmp_path / "a.conll", columns={"words": 0, "pos": 1, "chunks": -2})
    assert next(iter(chosen)) == {"words": ["EU", "rejects"], "pos": ["NNP", "VBZ"], "chunks": ["B-NP", "B-VP"]}
    (tmp_path / "b.conllu").write_text(
        "# text = a\n1-2\tdon't\t_\t_\n1\tdo\tdo\tAUX\n2\tn't\tnot\tPART\n2.1\tx\tx\tX\n3\tNew York\t_\tPROPN\n"
    )
    row = {"tokens": ["do", "n't", "New York"], "labels": ["AUX", "PART", "PROPN"]}
    assert list(read_rows(tmp_path / "b.conllu")) == [row]
    (tmp_path / "c.conllu").write_text("1\tdo\tdo\tAUX\nx\tn't\tnot\tPART\n")
    with pytest.raises(InputError, match="line 1: .in line 2. a word's line begins with its number, not with 'x'"):
        list(read_rows(tmp_path / "c.conllu"))
    with pytest.raises(InputError, match="line 1: .in line 1. no column 4 for 'labels'"):
        list(read_rows(tmp_path / "a.conll", columns={"tokens": 0, "labels": 4}))
    for columns in (["tokens"], {"tokens": "form"}):
        with pytest.raises(ValueError, match="columns of CoNLL"):
            list(read_rows(tmp_path / "a.conll", columns=columns))


def squad_file(path, questions, context="The sky is blue. Grass is green."):
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": context, "qas": questions}]}]}))
    return path


def test_squad_questions_with_and_without_answers(tmp_path):
    answer = {"text": "blue", "answer_start": 11}
    questions = [
        {"id": "a", "question": "What?", "answers": [answer]},
        {"id": "b", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [answer]},
    ]
    rows = read_rows(squad_file(tmp_path / "a.json", questions))
    given = {"title": "T", "context": "The sky is blue. Grass is green."}
    assert list(rows) == [
        {"id": "a", "question": "What?", "answers": {"text": ["blue"], "answer_start": [11]}, **given},
        {"id": "b", "question": "Why?", "answers": {"text": [], "answer_start": []}, **given},
    ]
    assert rows.where.endswith("article 1, paragraph 1, question 2 (id 'b')")
    bad = [{"id": "c", "question": "Who?", "answers": [{"text": "blue", "answer_start": 12}]}, {"id": "d"}, 7]
    rows = read_rows(squad_file(tmp_path / "b.json", [*bad, questions[0]]), "squad", on_bad_row="skip")
    with pytest.warns(UserWarning, match="skipped 3 .*question 'c': the answer 'blue' is not at character 12"):
        assert [row["id"] for row in rows] == ["a"]


def test_objects_of_python_and_of_datasets():
    assert list(read_rows(ROWS, columns=["id"])) == [{"id": row["id"]} for row in ROWS]
    made = read_rows(lambda: iter(ROWS))
    assert list(made) == list(made) == ROWS
    once = read_rows(iter(ROWS))
    assert list(once) == ROWS
    with pytest.raises(InputError, match="gives its rows once: pass a function"):
        list(once)
    with pytest.raises(InputError, match="list, row 2: a dictionary is needed, not a int"):
        list(read_rows([{"a": 1}, 2]))
    with pytest.raises(InputError, match="cannot be read from a dict: give one of train, test"):
        read_rows({"train": ROWS, "test": ROWS})
    with pytest.raises(InputError, match="cannot be read from a int"):
        read_rows(3)


def test_datasets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    assert list(read_rows(data)) == list(read_rows(data.to_iterable_dataset())) == ROWS


def test_arguments_are_checked(tmp_path):
    (tmp_path / "a.docx").write_text("")
    for given, message in [
        ((tmp_path / "none.csv",), "no such file: .*none.csv"),
        ((tmp_path / "a.docx",), "suffix '.docx' says no format"),
        ((tmp_path / "a.docx", "xml"), "format 'xml': allowed are text, jsonl"),
        ((ROWS, "csv"), "format 'csv' is for files, not for a list"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_rows(*given)
    with pytest.raises(ValueError, match="on_bad_row must be 'raise' or 'skip', not 'ignore'"):
        read_rows(ROWS, on_bad_row="ignore")
    with pytest.raises(ValueError, match="columns must be a list of names or a mapping, not the string 'text'"):
        read_rows(ROWS, columns="text")


CODAH = ["category", "prompt", *(f"ending{k}" for k in range(4)), "label"]
REAL = {
    "imdb_cf/orig_train.tsv": ({"quotes": True}, 1707, {"Sentiment", "Text"}),
    "wnut17/train.conll": ({}, 3394, {"tokens", "labels"}),
    "ud_ewt/en_ewt-ud-dev.conllu": ({}, 2001, {"tokens", "labels"}),
    "xquad_en/xquad.en.json": ({}, 1190, {"id", "title", "context", "question", "answers"}),
    "codah/fold_0_train.tsv": ({"header": CODAH}, 1665, set(CODAH)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    options, count, fields = REAL[name]
    path = SHARED.parent / name
    if not path.is_file():
        pytest.skip(f"{name} is not in ../shared/data")
    rows = list(read_rows(path, **options))
    assert len(rows) == count and all(set(row) == fields for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "jsonl.gz", "conll", "parquet", "generator"])
def test_memory_does_not_grow_with_the_rows(tmp_path, kind):
    count, text = 20_000, "word " * 40
    if kind == "generator":
        rows = read_rows({"id": "x", "text": text + str(i)} for i in range(count))
    elif kind == "conll":
        (tmp_path / "a.conll").write_text(f"{text.replace(' ', '_')} O\n\n" * count)
        rows = read_rows(tmp_path / "a.conll")
    else:
        rows = read_rows(write(tmp_path / f"a.{kind}", [{"id": str(i), "text": text} for i in range(count)]))
    tracemalloc.start()
    try:
        seen = sum(1 for _ in rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == count
    assert peak < 1_500_000, f"{peak:,} bytes for {count * 200:,} bytes of rows"
