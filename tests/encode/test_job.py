"""encode_file: complete or absent, resumable after any death to the same bytes, never mixed with another job."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from encode import tiny

from bert_fast.encode import Encoder, InputError, ResumeError, encode_file, job
from bert_fast.encode.partial import Partial, partial_folder

TEXTS = tiny.make_texts(4000)
SETTINGS = {"max_tokens": 128}  # small windows: a kill finds many of them


@pytest.fixture(autouse=True)
def one_thread():
    """As many threads here as in the subprocesses: the last bits of a sum depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "texts.txt"
    path.write_text("".join(f"{t}\n" for t in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, folder, texts_file):
    """The bytes of an unbroken run, by suffix."""
    out = tmp_path_factory.mktemp("unbroken")
    torch.set_num_threads(1)
    kept = {}
    for suffix in (".npy", ".safetensors", ".parquet"):
        if suffix == ".parquet":
            pytest.importorskip("pyarrow")
        report = encode_file(texts_file, out / f"out{suffix}", folder, **SETTINGS)
        assert (report.rows, report.resumed, report.hidden) == (len(TEXTS), 0, tiny.HIDDEN)
        kept[suffix] = (out / f"out{suffix}").read_bytes()
        assert sorted(p.name for p in out.iterdir() if p.stem == "out") == [f"out{s}" for s in sorted(kept)]
    return kept


def read(path):
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)["embeddings"]
    import pyarrow.parquet as pq

    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_every_output_holds_the_encoders_vectors_in_order(tmp_path, folder, unbroken, suffix):
    (tmp_path / f"o{suffix}").write_bytes(unbroken[suffix])
    got = read(tmp_path / f"o{suffix}")
    expected = Encoder(folder, **SETTINGS).encode(TEXTS)
    assert got.dtype == np.float32 and np.array_equal(got, expected)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_no_texts_give_no_rows(tmp_path, folder, suffix):
    (tmp_path / "in.txt").write_bytes(b"")
    report = encode_file(tmp_path / "in.txt", tmp_path / f"o{suffix}", folder)
    assert report.rows == 0 and read(tmp_path / f"o{suffix}").shape == (0, tiny.HIDDEN)
    assert not partial_folder(tmp_path / f"o{suffix}").exists()


# ---------------------------------------------------------------- killed, then resumed


# Waits after every window, so that a kill finds the work unfinished however fast the machine is.
SLOWLY = """
import sys, time
from bert_fast.cli import main
from bert_fast.encode.partial import Partial
right = Partial.append
def slow(self, *arguments):
    right(self, *arguments)
    time.sleep(0.05)
Partial.append = slow
sys.exit(main())
"""


def command(source, output, folder, start=("-c", SLOWLY)):
    return [
        *(sys.executable, *start, "encode", str(source), "--output", str(output), "--model", str(folder)),
        *("--max-tokens", str(SETTINGS["max_tokens"]), "--threads", "1"),
    ]


def windows_done(output):
    try:
        return (partial_folder(output) / "journal").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def run_and_kill(arguments, output, after, how=signal.SIGKILL):
    """Starts a run and kills it once `after` more windows are safe; returns its exit status and what it said."""
    wanted = windows_done(output) + after
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    # A shell's background jobs ignore Control-C, and so would what they start.
    process = subprocess.Popen(arguments, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes)
    deadline = time.monotonic() + 60
    while process.poll() is None and windows_done(output) < wanted:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.0005)
    time.sleep(random.Random(after).random() * 0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(("suffix", "times"), [(".npy", 2), (".parquet", 1)])
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(
    tmp_path, folder, texts_file, unbroken, suffix, times
):
    output = tmp_path / f"out{suffix}"
    arguments = command(texts_file, output, folder)
    kills = 0
    for after in random.Random(0).choices(range(1, 4), k=times):
        status, _ = run_and_kill(arguments, output, after)
        if status == -signal.SIGKILL:
            kills += 1
            assert not output.exists() and windows_done(output) >= after
    assert kills == times
    plain = command(texts_file, output, folder, ("-m", "bert_fast"))
    finished = subprocess.run(plain, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "that were done before" in finished.stderr
    assert output.read_bytes() == unbroken[suffix]
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


def test_interrupted_with_control_c_says_how_to_go_on(tmp_path, folder, texts_file, unbroken):
    output = tmp_path / "out.npy"
    status, said = run_and_kill(command(texts_file, output, folder), output, 3, signal.SIGINT)
    assert status == 130 and "Traceback" not in said
    assert f"texts are safe in {partial_folder(output)}: run the same command again to go on" in said
    assert encode_file(texts_file, output, folder, threads=1, **SETTINGS).resumed > 0
    assert output.read_bytes() == unbroken[".npy"]


class Dead(BaseException):
    """Stands for a kill in tests that choose the moment."""


def stop_after(monkeypatch, windows):
    """Makes a job die after so many windows are safe."""
    real = Partial.append

    def append(self, *arguments):
        real(self, *arguments)
        if windows_done(self.output) >= windows:
            raise Dead

    monkeypatch.setattr(Partial, "append", append)


@pytest.fixture
def stopped(tmp_path, folder, texts_file):
    """An output whose job died after two windows."""
    output = tmp_path / "out.npy"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Dead):
        stop_after(patch, 2)
        encode_file(texts_file, output, folder, **SETTINGS)
    assert windows_done(output) >= 2 and not output.exists()
    return output


@pytest.mark.parametrize("damage", ["half a line", "half a window", "no journal line", "empty line", "leftover"])
def test_what_a_crash_leaves_half_written_is_done_again(folder, texts_file, unbroken, stopped, damage):
    work = partial_folder(stopped)
    journal, rows = work / "journal", work / "rows"
    if damage == "half a line":
        journal.write_bytes(journal.read_bytes() + b'{"rows": 99999, "cu')
    elif damage == "half a window":
        rows.write_bytes(rows.read_bytes() + b"\x01" * 12345)
    elif damage == "no journal line":
        journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    elif damage == "empty line":
        journal.write_bytes(journal.read_bytes() + b"\n")
    else:
        (work / ".manifest.json.0123.tmp").write_bytes(b"{")
    report = encode_file(texts_file, stopped, folder, **SETTINGS)
    assert report.resumed > 0 and stopped.read_bytes() == unbroken[".npy"]
    assert not work.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_rows_that_are_not_what_the_journal_says_are_refused(folder, texts_file, unbroken, stopped, damage):
    rows = partial_folder(stopped) / "rows"
    data = bytearray(rows.read_bytes())
    if damage == "cut":
        del data[-8:]
    else:
        data[-8] ^= 1
    rows.write_bytes(data)
    with pytest.raises(ResumeError, match="rows is damaged: it is not what its journal says. Use --restart"):
        encode_file(texts_file, stopped, folder, **SETTINGS)
    encode_file(texts_file, stopped, folder, restart=True, **SETTINGS)
    assert stopped.read_bytes() == unbroken[".npy"]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_while_finishing(tmp_path, folder, texts_file, unbroken, suffix, moment, monkeypatch):
    output = tmp_path / f"out{suffix}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Dead):
        if moment == "before the rename":
            patch.setattr("bert_fast.encode.partial.os.replace", _die_for(output, os.replace))
        else:
            patch.setattr(Partial, "_clear", _die_when_everything(Partial._clear))
        encode_file(texts_file, output, folder, **SETTINGS)
    assert output.exists() == (moment == "after the rename")
    report = encode_file(texts_file, output, folder, **SETTINGS)
    assert (report.rows, report.resumed) == (len(TEXTS), len(TEXTS))
    assert output.read_bytes() == unbroken[suffix] and not partial_folder(output).exists()


def _die_for(output, real):
    def replace(old, new):
        if str(new) == str(output):
            raise Dead
        real(old, new)

    return replace


def _die_when_everything(real):
    def clear(self, everything=False):
        if everything:
            raise Dead
        real(self)

    return clear


def test_renamed_then_removed_by_the_user_starts_over(tmp_path, folder, texts_file, unbroken):
    output = tmp_path / "out.npy"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Dead):
        patch.setattr(Partial, "_clear", _die_when_everything(Partial._clear))
        encode_file(texts_file, output, folder, **SETTINGS)
    output.unlink()
    assert encode_file(texts_file, output, folder, **SETTINGS).resumed == 0
    assert output.read_bytes() == unbroken[".npy"]


# ---------------------------------------------------------------- never mixed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 65}, "max_tokens was 128, now 65"),
        ({"pooling": "cls"}, "pooling was 'mean', now 'cls'"),
        ({"normalize": True}, "normalize was False, now True"),
        ({"max_length": 9}, "max_length was 64, now 9"),
        ({"prompt": "x"}, "prompt was '', now 'x'"),
        ({"dtype": "bfloat16"}, "dtype was 'float32', now 'bfloat16'"),
        ({"threads": 7}, "threads was [0-9]+, now 7"),
        ({"input_format": "csv", "text_field": None}, "input format was 'text', now 'csv'"),
    ],
)
def test_other_options_are_refused_by_name(folder, texts_file, stopped, options, message):
    before = {p.name: p.read_bytes() for p in partial_folder(stopped).iterdir()}
    with pytest.raises(ResumeError, match=f"{message}.*--restart to throw that work away"):
        encode_file(texts_file, stopped, folder, **{**SETTINGS, **options})
    assert {p.name: p.read_bytes() for p in partial_folder(stopped).iterdir()} == before


def test_another_input_or_model_is_refused(tmp_path, folder, texts_file, stopped):
    other = tmp_path / "other.txt"
    other.write_bytes(texts_file.read_bytes()[:-2] + b"x\n")
    with pytest.raises(ResumeError, match="input (mtime_ns|sample) was"):
        encode_file(other, stopped, folder, **SETTINGS)
    model = tiny.write_model(tmp_path / "model", seed=1)
    with pytest.raises(ResumeError, match="model model.safetensors was"):
        encode_file(texts_file, stopped, model, **SETTINGS)


def test_restart_throws_the_old_work_away(folder, texts_file, stopped):
    report = encode_file(texts_file, stopped, folder, restart=True, pooling="cls", **SETTINGS)
    assert report.resumed == 0
    assert np.array_equal(np.load(stopped), Encoder(folder, pooling="cls", **SETTINGS).encode(TEXTS))


def test_a_resumed_run_takes_the_threads_and_the_product_of_the_run_it_goes_on_with(
    tmp_path, folder, texts_file, monkeypatch
):
    from bert_fast.ops.linear import cpu_linear_plan

    output = tmp_path / "out.npy"
    packed, dtype = cpu_linear_plan(torch.float32)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Dead):
        stop_after(patch, 1)
        patch.setattr(job, "cpu_linear_plan", lambda _: (not packed, dtype))
        encode_file(texts_file, output, folder, threads=1, **SETTINGS)
    seen = {}

    def look(encoder, *arguments):
        seen.update(threads=torch.get_num_threads(), plan=cpu_linear_plan(torch.float32))

    monkeypatch.setattr(job, "_run", look)
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partial, "finish", lambda self, about: None)
        encode_file(texts_file, output, folder, **SETTINGS)
    assert seen == {"threads": 1, "plan": (not packed, dtype)}
    assert torch.get_num_threads() == 2 and cpu_linear_plan(torch.float32) == (packed, dtype)


def test_two_processes_do_not_work_on_one_output(tmp_path, folder, texts_file):
    pytest.importorskip("fcntl", reason="this system has no flock")
    output = tmp_path / "out.npy"
    partial = Partial(output, ".npy", tiny.HIDDEN)
    with partial.opened({}, False), pytest.raises(ResumeError, match="another process is working on"):
        encode_file(texts_file, output, folder, **SETTINGS)
    assert not partial_folder(output).exists()  # nothing was done in it


def test_a_directory_that_is_not_ours_is_left_alone(tmp_path, folder, texts_file):
    work = partial_folder(tmp_path / "out.npy")
    work.mkdir()
    (work / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(ResumeError, match="is in the way: it holds 'thesis.tex'"):
            encode_file(texts_file, tmp_path / "out.npy", folder, restart=restart)
    assert (work / "thesis.tex").read_text() == "years of work"


# ---------------------------------------------------------------- what is wrong


def test_a_bad_row_is_named_and_the_work_before_it_is_kept(tmp_path, folder):
    rows = [json.dumps({"text": t}) for t in TEXTS[:2000]]
    rows[1500] = '{"text": 7}'
    source, output = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match="in.jsonl, line 1501: field 'text' is 7"):
        encode_file(source, output, folder, **SETTINGS)
    assert not output.exists() and windows_done(output) >= 2


def test_a_job_that_fails_at_once_leaves_nothing(tmp_path, folder):
    (tmp_path / "in.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        encode_file(tmp_path / "in.jsonl", tmp_path / "out.npy", folder)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_outputs_that_cannot_be_written_are_named_before_the_work(tmp_path, folder, texts_file):
    for output, message in {
        "out.txt": "an output file ends in .npy, .safetensors, .parquet",
        "nowhere/out.npy": "there is no folder .*nowhere",
        "folder.npy": "it is a folder",
        "there.npy": "there.npy is there already: --overwrite replaces it",
    }.items():
        (tmp_path / "folder.npy").mkdir(exist_ok=True)
        (tmp_path / "there.npy").write_bytes(b"precious")
        with pytest.raises(InputError, match=message):
            encode_file(texts_file, tmp_path / output, folder)
    assert (tmp_path / "there.npy").read_bytes() == b"precious"
    (tmp_path / "in.npy").write_text("text\n")
    with pytest.raises(InputError, match="in.npy is the input itself"):
        encode_file(tmp_path / "in.npy", tmp_path / "in.npy", folder, input_format="text", overwrite=True)


def test_overwrite_replaces_when_complete(tmp_path, folder):
    (tmp_path / "in.txt").write_text("bab\ndad\n")
    output = tmp_path / "out.npy"
    output.write_bytes(b"old")
    encode_file(tmp_path / "in.txt", output, folder, overwrite=True)
    assert np.load(output).shape == (2, tiny.HIDDEN)


def test_numbers_that_are_not_finite_are_an_error(tmp_path, folder):
    (tmp_path / "in.txt").write_text("bab\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ResumeError, match="vector of text 1 .*not finite"):
        patch.setattr(Encoder, "embed", lambda self, window: np.full((1, tiny.HIDDEN), np.nan, np.float32))
        encode_file(tmp_path / "in.txt", tmp_path / "out.npy", folder)
    assert not (tmp_path / "out.npy").exists()


def test_standard_input_is_read_and_never_resumed(tmp_path, folder):
    output = tmp_path / "out.npy"
    arguments = command("-", output, folder)
    text = "".join(f"{t}\n" for t in TEXTS[:300])
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(np.load(output)) == 300
