"""Two processes, copies (DDP) or sharded (FSDP2), take the steps that one process takes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import two_processes
from tiny_training import documents_and_tokenizer

from bert_fast.training import record

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """{scenario: losses} of two processes, and of one."""
    drawing = record.plot
    folder = tmp_path_factory.mktemp("processes")
    documents_and_tokenizer(folder)
    alone = {}
    one = two_processes.scenarios(0, 1, folder)
    for name, values in one:
        alone[name] = values
        if name == "to be gone on with":
            break
    shutil.copytree(folder / "from 1", folder / "copy of from 1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, *launch, str(TESTS / "two_processes.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
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


def test_losses_change(losses):
    """Equal curves would mean little if nothing moved."""
    alone, _ = losses
    assert len({round(loss, 4) for loss in alone["Lamb"]}) == 6
    assert abs(alone["Lamb"][-1] - alone["AdamW"][-1]) > 1e-3
