"""Two processes, copies (DDP) or sharded (FSDP2), take the steps that one process takes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import rows_of_two
import two_processes
from tiny_training import documents_and_tokenizer
from training.tasks import generated

from bert_fast.training import record

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """{scenario: losses} of two processes, and of one."""
    drawing = record.plot
    folder = tmp_path_factory.mktemp("processes")
    documents_and_tokenizer(folder)
    paragraphs = (folder / "documents.txt").read_text().split("\n\n")
    (folder / "held_out.txt").write_text("\n\n".join(paragraphs[:7]))
    rows_of_two.prepare(folder)
    rows_of_two.commands(1, folder)
    alone = {"folder": folder}
    one = two_processes.scenarios(0, 1, folder)
    for name, values in one:
        alone[name] = values
        if name == "to be gone on with":
            break
    shutil.copytree(folder / "from 1", folder / "copy of from 1")
    with socket.socket() as free, socket.socket() as another:
        free.bind(("127.0.0.1", 0))
        another.bind(("127.0.0.1", 0))
        port, later = free.getsockname()[1], another.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, *launch, str(TESTS / "two_processes.py"), str(folder), str(later)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    alone.update(one)
    record.plot = drawing
    return alone, json.loads((folder / "losses.json").read_text())


@pytest.mark.parametrize("name", ["Lamb", "AdamW", "accumulated", "unused pooler"])
def test_copies_take_the_steps_of_one_process(losses, name):
    """With batches whose last is one text: the second process has none, and takes part all the same."""
    alone, together = losses
    assert together[name] == pytest.approx(alone[name], rel=2e-5)


@pytest.mark.parametrize("name", ["Lamb", "AdamW", "accumulated"])
def test_sharded_processes_take_the_steps_of_one_process(losses, name):
    """LAMB's norms are then over all shards of a tensor."""
    alone, together = losses
    assert together[f"{name}, sharded"] == pytest.approx(alone[name], rel=2e-5)


@pytest.mark.parametrize("name", ["Lamb", "AdamW"])
def test_sharded_processes_skip_a_step_in_fp16_together(losses, name):
    """Where one process's part of a gradient overflows; then the steps are those of float32, but for rounding."""
    alone, together = losses
    found, scales = together[f"{name}, fp16, sharded"]
    assert scales == [[2.0**12, 2.0**11, *[2.0**10] * 6]] * 2
    assert found[2:] == pytest.approx(alone[f"{name}, without two batches"], rel=2e-3)


def test_norms_of_sharded_tensors_are_exchanged_once(losses):
    """LAMB's two norms of a tensor together; AdamW has none."""
    _, together = losses
    lamb, adamw, decaying = together["exchanges"]
    assert lamb == decaying > 10 and adamw == 0


def test_sharded_layers_are_computed_again_in_the_backward_pass(losses):
    alone, together = losses
    assert together["recomputed, sharded"] == pytest.approx(alone["Lamb"], rel=2e-5)


@pytest.mark.parametrize("name", ["gone on with, from 1", "gone on with, sharded, from copies"])
def test_two_processes_go_on_where_one_was_stopped(losses, name):
    alone, together = losses
    assert together[name] == pytest.approx(alone["Lamb"][3:], rel=2e-5)


@pytest.mark.parametrize("name", ["gone on with, from 2", "gone on with, from sharded"])
def test_one_process_goes_on_where_two_were_stopped(losses, name):
    alone, _ = losses
    assert alone[name] == pytest.approx(alone["Lamb"][3:], rel=2e-5)


def test_pretraining_from_documents_is_the_same_in_two_sharded_processes(losses):
    """Losses of both phases, and the scores of held-out text, of which each process measured a part."""
    alone, together = losses
    assert len(alone["pretrain"]) == 3 * 5 + 4 * 2
    assert together["pretrain"] == pytest.approx(alone["pretrain"], rel=2e-5)


@pytest.mark.parametrize("name", generated.ROWS)
def test_two_processes_share_rows_and_find_what_one_does(losses, name):
    """Nine rows in windows of eight: one process has nothing in the last, and runs the model all the same."""
    alone, (first, second) = losses[0][f"rows of {name}"], losses[1][f"rows of {name}"]
    (alone,) = alone
    assert first["scores"] == second["scores"] and first["predictions"] == second["predictions"]
    assert len(first["runs"]) == len(second["runs"])
    assert sum(alone["runs"]) < sum(first["runs"] + second["runs"]) < 1.5 * sum(alone["runs"])
    assert first["scores"].keys() == alone["scores"].keys() and alone["scores"]["rows"] == rows_of_two.ROWS
    for score, value in first["scores"].items():
        rounding = score == "eval_loss" or name == "regression"  # sums of what last bits differ in
        assert value == (pytest.approx(alone["scores"][score], rel=1e-4) if rounding else alone["scores"][score])
    for ours, theirs in zip(first["predictions"], alone["predictions"], strict=True):
        for key, value in theirs.items():
            if key in ("label", "labels", "entities", "choice", "answer", "tokens"):
                assert ours[key] == value
            elif key == "score":
                assert ours[key] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_keep_the_best_evaluation_and_stop_as_one_does(losses, shard):
    (alone,), (first, second) = losses[0]["tuned, False"], losses[1][f"tuned, {shard}"]
    assert 3 <= len(alone["lines"]) < 8
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-3)
    assert [line["step"] for line in first["lines"]] == [line["step"] for line in alone["lines"]]
    assert second["lines"] == []


def test_commands_of_two_processes_speak_once(losses):
    folder = losses[0]["folder"]
    alone, first, second = (json.loads((folder / f"printed {of}.json").read_text()) for of in ("1 0", "2 0", "2 1"))
    assert json.loads(first[0][1]) == pytest.approx(json.loads(alone[0][1]), rel=1e-5)
    assert first[1][2].endswith(": 9 rows\n") and second[0] == second[1] == [0, "", ""]
    files = [folder / f"predicted by {world}.jsonl" for world in (1, 2)]
    alone, together = ([json.loads(line)["label"] for line in file.read_text().splitlines()] for file in files)
    assert together == alone and len(alone) == 9
    for printed in (first, second):
        assert printed[2][0] == 2 and "2 processes cannot share standard input" in printed[2][2]


def test_losses_change(losses):
    """Equal curves would mean little if nothing moved."""
    alone, _ = losses
    assert len({round(loss, 4) for loss in alone["Lamb"]}) == 6
    assert abs(alone["Lamb"][-1] - alone["AdamW"][-1]) > 1e-3
