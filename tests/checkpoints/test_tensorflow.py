"""Reading TensorFlow-1 checkpoints: what is right is read to the bit, what is wrong is named."""

import struct

import numpy as np
import pytest
import torch
from checkpoints import bundle_writer as w
from checkpoints.shared_data import shared

from bert_fast.checkpoints import CheckpointError, CheckpointNotFoundError
from bert_fast.checkpoints import sstable as sstable_module
from bert_fast.checkpoints.sstable import read_table
from bert_fast.checkpoints.tensorflow import TensorBundle, find_bundle

TENSORS = {
    "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a/bias": np.array([1.5, -2.5], dtype=np.float32),
    "double": np.array([[1e300]], dtype=np.float64),
    "empty": np.zeros((0, 5), dtype=np.float32),
    "half": np.array([1, 2, 65504], dtype=np.float16),
    "long": np.arange(1000, dtype=np.int64),
    "scalar": np.array(7, dtype=np.int32),
    "small": np.array([-128, 127], dtype=np.int8),
    "yes": np.array([True, False]),
}


def opened(tmp_path, made, **options):
    return TensorBundle(made.write(tmp_path / "model.ckpt", **options))


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("block_entries", [1, 4, 100])
def test_every_type_over_several_data_shards(tmp_path, shards, block_entries):
    bundle = opened(tmp_path, w.bundle(TENSORS, shards), block_entries=block_entries)
    assert sorted(bundle.tensors) == sorted(TENSORS)
    for name, value in TENSORS.items():
        loaded = bundle.load(name)
        assert bundle.tensors[name].shape == value.shape
        assert loaded.dtype == bundle.tensors[name].dtype
        assert np.array_equal(loaded.numpy(), value)
        assert loaded.numpy().dtype == value.dtype


def test_bfloat16(tmp_path):
    value = torch.tensor([1.0, -3.140625, 2.0**100], dtype=torch.bfloat16)
    raw = value.view(torch.uint8).numpy().tobytes()
    bundle = opened(tmp_path, w.bundle({"x": (w.BFLOAT16, (3,), raw)}))
    assert torch.equal(bundle.load("x"), value)


def test_tensors_own_their_memory(tmp_path):
    bundle = opened(tmp_path, w.bundle(TENSORS))
    bundle.load("a/bias").zero_()
    assert bundle.load("a/bias").tolist() == [1.5, -2.5]


def test_real_checkpoint_with_optimizer_slots():
    with TensorBundle(find_bundle(shared("keras_bert_tf1_tiny"))) as bundle:
        assert len(bundle.tensors) == 139
        values = {name: bundle.load(name) for name in bundle.tensors}
    assert values["global_step"].item() == 20
    assert values["bert/embeddings/word_embeddings"].shape == (15, 4)
    assert all(value.isfinite().all() for value in values.values())


# Damage


def test_a_flipped_bit_in_the_values_fails_the_checksum(tmp_path):
    made = w.bundle(TENSORS)
    made.shards[0][100] ^= 1
    bundle = opened(tmp_path, made)
    failed = []
    for name in bundle.tensors:
        try:
            bundle.load(name)
        except CheckpointError as error:
            failed.append(name)
            assert "checksum" in str(error)
            assert name in str(error)
            assert "data-00000-of-00001" in str(error)
    assert len(failed) == 1


def test_a_flipped_bit_in_the_index_fails_the_checksum(tmp_path):
    prefix = w.bundle(TENSORS).write(tmp_path / "model.ckpt")
    index = tmp_path / "model.ckpt.index"
    good = bytearray(index.read_bytes())
    for position in range(0, len(good) - 48, 7):
        bad = bytearray(good)
        bad[position] ^= 4
        index.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"model\.ckpt\.index"):
            TensorBundle(prefix)


@pytest.mark.parametrize("kept", [0, 1, 47, 48, 100, -1, -8, -48])
def test_a_truncated_index(tmp_path, kept):
    prefix = w.bundle(TENSORS).write(tmp_path / "model.ckpt")
    index = tmp_path / "model.ckpt.index"
    index.write_bytes(index.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.ckpt\.index"):
        TensorBundle(prefix)


def test_truncated_data_is_found_on_opening(tmp_path):
    made = w.bundle(TENSORS, 2)
    made.shards[1] = made.shards[1][:-1]
    with pytest.raises(CheckpointError, match="00001-of-00002 has .* cut short"):
        opened(tmp_path, made)


def test_data_truncated_after_opening(tmp_path):
    bundle = opened(tmp_path, w.bundle(TENSORS))
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cut short"):
        bundle.load("long")


def test_a_missing_data_shard_is_named(tmp_path):
    prefix = w.bundle(TENSORS, 3).write(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt.data-00002-of-00003").unlink()
    with pytest.raises(CheckpointNotFoundError, match="data-00002-of-00003 is missing"):
        TensorBundle(prefix)
    assert len(TensorBundle(prefix, index_only=True).tensors) == len(TENSORS)


def test_missing_index(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="none.ckpt.index does not exist"):
        TensorBundle(tmp_path / "none.ckpt")


# What is well formed, and wrong or not supported


def altered(tmp_path, **entries):
    made = w.bundle({"x": np.ones((2, 3), dtype=np.float32)})
    made.entries.update(entries)
    return opened(tmp_path, made)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (w.entry(1, (2, 3), 0, 0, 20, 0), "is said to take 20 bytes"),
        (w.entry(1, (2**25, 2**25), 0, 0, 24, 0), "is said to take 24 bytes"),
        (w.entry(1, (2**40, 2**40), 0, 0, 24, 0), "cannot be"),
        (w.entry(1, (0, 2**62, 2**62), 0, 24, 0, 0), "cannot be"),
        (w.entry(1, (2**40,), 0, 24, 2**42, 0), "its index needs"),
        (w.entry(1, (-1, 3), 0, 0, 24, 0), "negative"),
        (w.entry(1, (2, 3), 0, -8, 24, 0), "negative"),
        (w.entry(1, (2, 3), 0, 0, -24, 0), "negative"),
        (w.entry(1, (2, 3), 1, 0, 24, 0), "data file 1 of 1"),
        (w.entry(1, (2, 3), 2**63, 0, 24, 0), "data file"),
        (w.entry(1, (2, 3), 0, 12, 24, 0), "overlaps"),
        (w.entry(1, (1,) * 9, 0, 24, 4, 0), "more than 8 dimensions"),
        (w.number(1, 1) + w.message(2, w.number(3, 1)), "no rank"),
        (b"\x08" + b"\xff" * 11, "64 bits"),
        (b"\x12\x7f", "past the end"),
        (b"\x0b", "wire type 3"),
        (w.message(1, b"x"), "wire type"),
    ],
)
def test_an_entry_that_makes_no_sense(tmp_path, entry, message):
    with pytest.raises(CheckpointError, match=message):
        altered(tmp_path, y=entry)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (w.header(0), "0 data files"),
        (w.header(2**62), "data files"),
        (w.header(endianness=1), "big-endian"),
        (w.header(min_consumer=2), "version 2"),
        (b"\xff", "past the end"),
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, header, message):
    made = w.bundle(TENSORS)
    made.header = header
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, made)


def test_tf2_object_graph_checkpoint_is_told_apart(tmp_path):
    by_key = w.bundle({"_CHECKPOINTABLE_OBJECT_GRAPH": (w.STRING, (), b"\x00graph"), "x": np.ones(2, np.float32)})
    by_suffix = w.bundle({"model/layer-0/kernel/.ATTRIBUTES/VARIABLE_VALUE": np.ones(2, np.float32)})
    for made in (by_key, by_suffix):
        with pytest.raises(CheckpointError, match="TensorFlow-2 object-graph"):
            opened(tmp_path, made)


def test_a_partitioned_variable_is_a_clear_error(tmp_path):
    slices = w.message(7, w.message(1, w.number(1, 0) + w.number(2, 2)))
    made = w.bundle({"x": np.ones(2, np.float32)})
    made.entries["split"] = w.entry(1, (4, 2), 0, 0, 0, 0, slices)
    made.entries["\0split-slice"] = made.entries["x"]
    bundle = opened(tmp_path, made)
    assert bundle.load("x").tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="split is a partitioned variable"):
        bundle.load("split")


def test_strings_are_a_clear_error(tmp_path):
    bundle = opened(tmp_path, w.bundle({"s": (w.STRING, (1,), b"text")}))
    assert bundle.tensors["s"].dtype is None
    with pytest.raises(CheckpointError, match="s does not hold numbers"):
        bundle.load("s")


@pytest.mark.parametrize(("kind", "name"), [(1, "snappy"), (9, "type 9")])
def test_compressed_blocks_are_a_clear_error(tmp_path, kind, name):
    with pytest.raises(CheckpointError, match=rf"compressed \({name}\)"):
        opened(tmp_path, w.bundle(TENSORS), compression=kind)


# Tables that unfold


def test_keys_out_of_order_are_refused():
    with pytest.raises(CheckpointError, match="keys are out of order"):
        read_table(w.table([(b"b", b""), (b"a", b"")]))


def test_a_block_that_the_index_names_twice_is_refused():
    """Otherwise a small file could make the reader go over a large block as often as it likes."""
    data = w.table([(b"a", b""), (b"b", b"")], block_entries=1)
    first = data[: len(w.block([(b"a", b"")])) + 5]
    handles = [w.varint(0) + w.varint(len(first) - 5)] * 2
    index = w.block(list(zip([b"a", b"b"], handles, strict=True)))
    typed = index + b"\0"
    body = first + typed + struct.pack("<I", w.masked_crc32c(typed))
    footer = (w.varint(0) + w.varint(len(first) - 5) + w.varint(len(first)) + w.varint(len(index))).ljust(40, b"\0")
    with pytest.raises(CheckpointError, match="blocks are out of order"):
        read_table(body + footer + struct.pack("<Q", w.MAGIC))


def test_shared_prefixes_cannot_unfold_without_bound(monkeypatch):
    """Three bytes an entry, and each repeats a long key."""
    monkeypatch.setattr(sstable_module, "MAX_KEYS_SIZE", 20_000)
    long = b"k" * 1000
    pairs = [(long + bytes([i // 256, i % 256]), b"") for i in range(100)]
    with pytest.raises(CheckpointError, match="more than 20000 bytes"):
        read_table(w.table(pairs, block_entries=1000))


def test_absurdly_long_keys_are_refused():
    with pytest.raises(CheckpointError, match="a key of 5000 bytes"):
        read_table(w.table([(b"k" * 5000, b"")]))


@pytest.mark.parametrize("block", [b"", b"\0\0\0", b"\xff" * 4, w.varint(1) + b"\0\0" + struct.pack("<2I", 0, 1)])
def test_blocks_that_are_not_blocks(block):
    with pytest.raises(CheckpointError):
        read_table(w.table([(b"a", b"")], blocks=[block]))


# Which checkpoint of a directory


def test_find_bundle(tmp_path):
    assert find_bundle(tmp_path) is None
    one = w.bundle(TENSORS).write(tmp_path / "model.ckpt-10")
    assert find_bundle(tmp_path) == one
    two = w.bundle(TENSORS).write(tmp_path / "model.ckpt-20")
    with pytest.raises(CheckpointError, match=r"several .*model\.ckpt-10, model\.ckpt-20"):
        find_bundle(tmp_path)
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "/home/me/model.ckpt-20"\nall_model_checkpoint_paths: "model.ckpt-10"\n'
    )
    assert find_bundle(tmp_path) == two
    best = w.bundle(TENSORS).write(tmp_path / "bert_model.ckpt")
    assert find_bundle(tmp_path) == best
