"""The TensorFlow reader under damage and malice: CheckpointError is all it raises, soon, and without absurd memory.

Damage alone is caught by checksums, so most mutations here are made before the checksums are: they reach the parser.
"""

import random
import time
import tracemalloc

import numpy as np
import pytest
from checkpoints import bundle_writer as w
from checkpoints.toys import hf_model, tensorflow_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_fast.checkpoints import CheckpointError, Translated, tensorflow
from bert_fast.checkpoints.tensorflow import TensorBundle

SECONDS = 2.0
PYTHON_BYTES = 30_000_000

FEW = {
    "bert/embeddings/word_embeddings": np.ones((5, 4), np.float32),
    "bert/pooler/dense/kernel": np.ones((4, 4), np.float32),
    "global_step": np.array(3, np.int64),
}


@pytest.fixture
def bounded(monkeypatch):
    """Read a whole checkpoint; fail on any other error, a long time, or much memory."""
    asked = []
    memory = tensorflow._memory

    def recorded(size):
        asked.append(size)
        return memory(size)

    monkeypatch.setattr(tensorflow, "_memory", recorded)

    def read(prefix):
        files = sum(file.stat().st_size for file in prefix.parent.glob(f"{prefix.name}.*"))
        asked.clear()
        start = time.perf_counter()
        tracemalloc.start()
        try:
            with Translated(TensorBundle(prefix)) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.load(name)
            outcome = "read"
        except CheckpointError as error:
            outcome = str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert time.perf_counter() - start < SECONDS
        assert peak < PYTHON_BYTES
        assert sum(asked) <= files
        return outcome

    return read


def mutate(data, rng):
    """Flip, cut, insert, repeat or overwrite somewhere."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 9]))
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(40)]
        elif kind == 4:
            data[at : at + 10] = w.varint(rng.choice([2**64 - 1, 2**63, 2**31, 2**40, 0, 1 << rng.randrange(64)]))
        else:
            del data[at : at + rng.randrange(1, 12)]
    return bytes(data)


@pytest.fixture(scope="module")
def toy():
    return w.bundle(tensorflow_tensors(hf_model(num_hidden_layers=1)), shards=2)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(tmp_path, bounded, toy, seed):
    """Bytes changed in files on disk, as a bad disk or a broken download would."""
    rng = random.Random(seed)
    prefix = toy.write(tmp_path / "m")
    files = sorted(tmp_path.iterdir())
    outcomes = set()
    for _ in range(40):
        file = rng.choice(files)
        good = file.read_bytes()
        file.write_bytes(mutate(good, rng))
        outcomes.add(bounded(prefix))
        file.write_bytes(good)
    assert bounded(prefix) == "read"
    assert any("checksum" in outcome for outcome in outcomes)


@pytest.mark.parametrize("seed", range(6))
def test_malicious_entries(tmp_path, bounded, seed):
    """Header and entries changed, with right checksums around them."""
    rng = random.Random(seed)
    outcomes = set()
    for _ in range(60):
        made = w.bundle(FEW, shards=rng.choice([1, 2]))
        if rng.random() < 0.2:
            made.header = mutate(made.header, rng)
        for name in rng.sample(sorted(FEW), rng.choice([1, 1, 3])):
            made.entries[name] = mutate(made.entries[name], rng)
        if rng.random() < 0.2:
            made.entries[rng.choice(sorted(FEW)) + "x"] = made.entries[rng.choice(sorted(FEW))]
        outcomes.add(bounded(made.write(tmp_path / "m")))
    assert len(outcomes) > 10


@pytest.mark.parametrize("seed", range(6))
def test_malicious_blocks(tmp_path, bounded, seed):
    """The coding of keys and lengths changed, with right checksums around it."""
    rng = random.Random(seed)
    made = w.bundle(FEW)
    outcomes = set()
    for _ in range(60):
        pairs = made.pairs()
        blocks = [mutate(w.block(pairs), rng) for _ in range(rng.choice([1, 1, 2]))]
        outcomes.add(bounded(made.write(tmp_path / "m", blocks=blocks)))
    assert len(outcomes) > 5


def test_malicious_footers(tmp_path, bounded):
    """Handles that point anywhere."""
    prefix = w.bundle(FEW).write(tmp_path / "m")
    index = tmp_path / "m.index"
    good = index.read_bytes()
    numbers = [0, 1, len(good), len(good) - 48, 2**31, 2**63, 2**64 - 1]
    for offset in numbers:
        for size in numbers:
            handles = w.varint(0) + w.varint(8) + w.varint(offset) + w.varint(size)
            index.write_bytes(good[:-48] + handles.ljust(40, b"\0")[:40] + good[-8:])
            assert bounded(prefix) != "read"


@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_an_index(tmp_path, bounded, data):
    (tmp_path / "m.index").write_bytes(data)
    assert bounded(tmp_path / "m") != "read"


@given(st.binary(max_size=300), st.binary(max_size=60))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_block_and_as_an_entry(tmp_path, bounded, block, entry):
    made = w.bundle(FEW)
    assert bounded(made.write(tmp_path / "m", blocks=[block])) != ""
    made.entries["bert/pooler/dense/bias"] = entry
    assert bounded(made.write(tmp_path / "m")) != ""


NAMES = st.text(min_size=1, max_size=30).filter(lambda name: name[0] != "\0")


@given(st.dictionaries(NAMES, st.integers(0, 50), max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_right_checkpoint_is_read(tmp_path, sizes):
    """The other half of strictness: what is well formed comes back to the bit, whatever its names and sizes."""
    tensors = {name: np.arange(size, dtype=np.float32) for name, size in sizes.items()}
    with TensorBundle(w.bundle(tensors, shards=2).write(tmp_path / "m")) as bundle:
        loaded = {name: bundle.load(name).tolist() for name in bundle.tensors}
    assert loaded == {name: value.tolist() for name, value in tensors.items()}
