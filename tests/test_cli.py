"""The command line: quick help, one-line errors, exit statuses. What the commands do is tested beside them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from encode import tiny

from bert_fast import cli
from bert_fast.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model"))


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "bert_fast", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_help_does_not_wait_for_pytorch():
    code = """
import sys
from bert_fast.cli import main
for arguments in (["--help"], ["encode", "--help"], ["--version"]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
assert not {"torch", "numpy", "tokenizers"} & set(sys.modules), "something heavy was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("doctor", "demo", "encode", "convert", "--max-tokens", "bert-fast "):
        assert word in done.stdout


def test_usage_errors_exit_with_2(capsys):
    for arguments in (
        [],
        ["nonsense"],
        ["encode", "in.txt"],
        ["encode", "in", "--model", "m", "--output", "o", "--dtype", "x"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: bert-fast" in capsys.readouterr().err


def test_encode_writes_what_it_says(tmp_path, folder, capsys):
    source, output = tmp_path / "in.csv", tmp_path / "out.npy"
    source.write_text("id,body\n" + "".join(f"{i},{t}\n" for i, t in enumerate(["bab dad", "gug", "bab " * 90])))
    options = ["--text-column", "body", "--normalize", "--pooling", "max", "--max-length", "12", "--device", "cpu"]
    assert main(["encode", str(source), "--model", str(folder), "--output", str(output), *options]) == 0
    vectors = np.load(output)
    assert vectors.shape == (3, tiny.HIDDEN)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    said = capsys.readouterr().err
    assert "out.npy: 3 x 32 float32" in said and "1 texts were longer than 12 tokens and were cut" in said


BAD = {
    "no input": (["nowhere.txt"], "no such file: nowhere.txt"),
    "no model": (["in.txt", "--model", "./nowhere"], "no such file or directory: './nowhere'"),
    "bad row": (["bad.jsonl"], "bad.jsonl, line 1: not JSON"),
    "bad output": (["in.txt", "--output", "out.doc"], "an output file ends in .npy, .safetensors, .parquet"),
    "bad length": (["in.txt", "--max-length", "9999"], "max_length=9999: from 3 to 64"),
    "bad threads": (["in.txt", "--threads", "0"], "--threads 0: at least 1"),
    "bad device": (["in.txt", "--device", "warp"], "device='warp'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_the_user_gave_wrong_is_said_in_one_line(tmp_path, folder, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("bab\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    given, message = BAD[case]
    arguments = ["encode", "--model", str(folder), "--output", "out.npy", *given]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("bert-fast: ") and message in said
    assert said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "in.txt"]
    for shown in (["--debug", *arguments], [*arguments, "--debug"]):
        assert main(shown) == 2
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_bug_shows_where_it_is(monkeypatch, capsys):
    monkeypatch.setattr("bert_fast.doctor.examine", lambda: 1 / 0)
    assert main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_and_closed_pipe(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("bert_fast.doctor.examine", interrupted)
    assert main(["doctor"]) == 130
    code = "import sys; from bert_fast.cli import main; sys.exit(main(['doctor', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1 and b"Traceback" not in said and b"Exception ignored" not in said


def test_python_m_and_version():
    done = run("--version")
    assert done.returncode == 0 and done.stdout.startswith("bert-fast ")
    assert done.stdout.split()[1] == cli._version()


def test_encode_from_standard_input(tmp_path, folder):
    done = run("encode", "-", "--model", folder, "--output", tmp_path / "o.npy", "--quiet", input="bab\n\ndad\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(np.load(tmp_path / "o.npy")) == 3


def test_convert_writes_a_folder_that_loads(tmp_path, folder, capsys):
    from safetensors.torch import load_file

    from bert_fast import BertModel, Tokenizer

    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "vocab.txt"):
        (source / name).write_bytes((folder / name).read_bytes())
    torch.save(load_file(folder / "model.safetensors"), source / "pytorch_model.bin")
    assert (
        main(["convert", str(source), str(tmp_path / "target"), "--model-class", "BertModel", "--dtype", "float16"])
        == 0
    )
    assert str(tmp_path / "target") in capsys.readouterr().out
    model = BertModel.from_pretrained(tmp_path / "target", add_pooling_layer=False)
    assert model.dtype == torch.float16
    assert Tokenizer.from_pretrained(tmp_path / "target").encode("bab") == Tokenizer.from_pretrained(folder).encode(
        "bab"
    )
    assert json.loads((tmp_path / "target" / "config.json").read_text())["hidden_size"] == tiny.HIDDEN
    assert main(["convert", str(source), str(tmp_path / "target")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "t2")]) == 2
    assert not (tmp_path / "t2").exists()
