"""Training a tokenizer: what it writes loads here and in transformers with the same ids, whole or not at all."""

import io
import json
import sys

import pytest

from bert_fast import Tokenizer
from bert_fast.cli import main
from bert_fast.rows import InputError
from bert_fast.tokenizer.training import train_tokenizer, train_tokenizer_files

SENTENCES = [
    "The cat sat on the mat; the dog sat on the log.",
    "Readers re-read what writers wrote, rewriting and reading again.",
    "Café Müller serves naïve coffee in Zürich.",
    "中文 texts mix with English ones, don't they?",
    "Unbelievable! 3.14159 is believable, 2,718 less so...",
]
TEXTS = [*SENTENCES, "", "  ", "🙂 unknown ☃ signs", "x" * 120, "A\u0301 combining, ﬁ ligature, İstanbul"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_what_is_written_loads_with_equal_ids_here_and_in_transformers(tmp_path, lowercase):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES * 3))
    folder = tmp_path / "tokenizer"
    said = train_tokenizer_files([tmp_path / "a.txt"], folder, vocab_size=180, lowercase=lowercase)
    names = {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in folder.iterdir()} == names
    ours, theirs = Tokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert said == f"{len(ours)} tokens learnt from 15 texts: {folder}" and 100 < len(ours) == len(theirs) <= 180
    assert ours.special_tokens == {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    assert ours.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert ours.model_max_length == theirs.model_max_length == 512
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    assert ours(TEXTS, TEXTS)["token_type_ids"] == theirs(TEXTS, TEXTS)["token_type_ids"]
    assert theirs.mask_token_id == 4 and theirs.pad_token_id == 0
    assert ("the" in ours.get_vocab()) and (("The" in ours.get_vocab()) != lowercase)
    assert ours.encode("CAT") == ours.encode("cat") or not lowercase
    (folder / "tokenizer.json").unlink()
    slow = transformers.BertTokenizer.from_pretrained(folder)
    assert Tokenizer.from_pretrained(folder)(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"] == slow(TEXTS)["input_ids"]


def test_training_again_gives_the_same_and_texts_are_a_stream():
    first = train_tokenizer(iter(SENTENCES * 2), vocab_size=150)
    for alphabet in (1000, 30):  # of rare characters, many are equally rare
        vocabularies = [train_tokenizer(TEXTS * 2, vocab_size=220, alphabet=alphabet).get_vocab() for _ in range(3)]
        assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert first.get_vocab() == train_tokenizer(SENTENCES * 2, vocab_size=150).get_vocab()
    alive, most = 0, 0

    class Text(str):
        def __new__(cls, value):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, value)

        def __del__(self):
            nonlocal alive
            alive -= 1

    train_tokenizer((Text(f"word{i % 50} and more") for i in range(20_000)), vocab_size=150)
    assert most < 5_000, "texts are let go while others are read"


def test_options_reach_the_vocabulary():
    rare = train_tokenizer(SENTENCES, vocab_size=1000, min_frequency=5)
    often = train_tokenizer(SENTENCES, vocab_size=1000, min_frequency=1)
    assert len(rare) < len(often)
    few = train_tokenizer(SENTENCES, vocab_size=1000, alphabet=10)
    assert few.encode("z", add_special_tokens=False) == [few.unk_token_id]
    assert often.encode("z", add_special_tokens=False) != [often.unk_token_id]
    assert train_tokenizer(SENTENCES, vocab_size=150, model_max_length=64).model_max_length == 64


def test_the_command(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in SENTENCES * 2))
    (tmp_path / "b.csv").write_text("id,body\n1,one more\n")
    command = ["tokenizer", "train", str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv"), "--text-field", "body"]
    command += ["--output", str(tmp_path / "out"), "--vocab-size", "160", "--cased", "--max-length", "128"]
    assert main(command) == 0
    assert "tokens learnt from 11 texts" in capsys.readouterr().out
    tokenizer = Tokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 128 and tokenizer.config["do_lower_case"] is False
    assert main(command) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*command, "--force", "--min-frequency", "9"]) == 0
    assert len(Tokenizer.from_pretrained(tmp_path / "out")) < len(tokenizer)


def test_standard_input(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(SENTENCES * 3).encode())))
    assert main(["tokenizer", "train", "-", "--output", str(tmp_path / "out"), "--vocab-size", "150"]) == 0
    assert "learnt from 15 texts" in capsys.readouterr().out
    expected = train_tokenizer(SENTENCES * 3, vocab_size=150)
    assert Tokenizer.from_pretrained(tmp_path / "out").get_vocab() == expected.get_vocab()


def test_failures_name_the_cause_and_leave_nothing(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": null}\n')
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "cjk.txt").write_text("".join(map(chr, range(0x4E00, 0x4F00))))
    for name, options, message in [
        ("a.jsonl", [], "a.jsonl, line 2: field 'text' is None, not a string"),
        ("empty.txt", [], "hold no words"),
        ("none.txt", [], "no such file"),
        ("cjk.txt", ["--vocab-size", "100"], "vocab_size 100 is too small: special tokens and the characters alone"),
        ("cjk.txt", ["--vocab-size", "0"], "vocab_size must be at least 1, not 0"),
    ]:
        assert main(["tokenizer", "train", str(tmp_path / name), "--output", str(tmp_path / "out"), *options]) == 2
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "cjk.txt", "empty.txt"]
    with pytest.raises(InputError, match="hold no words"):
        train_tokenizer([])
