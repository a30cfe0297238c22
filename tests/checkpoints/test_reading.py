"""Hugging Face's files: what is right is read lazily, what is broken or hostile is a CheckpointError, soon."""

import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from checkpoints.toys import hf_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bert_fast.checkpoints import CheckpointError, CheckpointNotFoundError, open_checkpoint
from bert_fast.checkpoints.files import read_config, read_json
from bert_fast.checkpoints.huggingface import SafetensorsFile, ShardedCheckpoint
from bert_fast.checkpoints.pickled import PickleFile

STATE = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "b.bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "c": torch.tensor([[1]], dtype=torch.int64),
    "empty": torch.zeros(0, 3, dtype=torch.float16),
}


def assert_holds(source, state=STATE):
    assert set(source.tensors) == set(state)
    for name, value in state.items():
        assert source.tensors[name].shape == tuple(value.shape)
        assert source.tensors[name].dtype == value.dtype
        assert torch.equal(source.load(name), value)


def write_sharded(directory, kind):
    """Two shards and an index of STATE; returns the index."""
    ending = {"safetensors": "safetensors", "bin": "bin"}[kind]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    weight_map = {}
    for i, names in enumerate((["a.weight", "c"], ["b.bias", "empty"]), 1):
        file = f"{stem}-{i:05d}-of-00002.{ending}"
        part = {name: STATE[name] for name in names}
        save_file(part, directory / file) if kind == "safetensors" else torch.save(part, directory / file)
        weight_map.update(dict.fromkeys(names, file))
    index = directory / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def write(directory, kind):
    """STATE as one of the kinds of checkpoint that a directory can hold."""
    if kind == "safetensors":
        save_file(STATE, directory / "model.safetensors")
    elif kind == "bin":
        torch.save(STATE, directory / "pytorch_model.bin")
    elif kind == "legacy bin":
        torch.save(STATE, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        write_sharded(directory, kind.removeprefix("sharded "))


KINDS = ["safetensors", "bin", "legacy bin", "sharded safetensors", "sharded bin"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_its_directory(tmp_path, kind):
    write(tmp_path, kind)
    with open_checkpoint(tmp_path) as source:
        assert_holds(source)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_its_file(tmp_path, kind):
    write(tmp_path, kind)
    file = next(iter(sorted(tmp_path.glob("*.json")) or tmp_path.iterdir()))
    with open_checkpoint(file) as source:
        assert_holds(source)


def test_safetensors_are_preferred_and_the_choice_can_be_forced(tmp_path):
    torch.save({"bin": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"safe": torch.ones(1)}, tmp_path / "model.safetensors")
    save_file({"half": torch.ones(1)}, tmp_path / "model.fp16.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["safe"]
    assert list(open_checkpoint(tmp_path, use_safetensors=True).tensors) == ["safe"]
    assert list(open_checkpoint(tmp_path, use_safetensors=False).tensors) == ["bin"]
    assert list(open_checkpoint(tmp_path, variant="fp16").tensors) == ["half"]
    with pytest.raises(CheckpointNotFoundError, match=r"model\.fp32\.safetensors"):
        open_checkpoint(tmp_path, variant="fp32")


def test_a_directory_without_weights_says_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin.*it has notes\.txt"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a file of weights"):
        open_checkpoint(tmp_path / "notes.txt")


def test_mapping_is_renewed_and_old_views_stay_valid(tmp_path, monkeypatch):
    monkeypatch.setattr("bert_fast.checkpoints.huggingface._MAPPED_BYTES", 10)
    save_file(STATE, tmp_path / "model.safetensors")
    source = SafetensorsFile(tmp_path / "model.safetensors")
    first = source._file
    views = {name: source.load(name) for name in STATE}
    assert source._file is not first
    source.close()
    assert all(torch.equal(views[name], STATE[name]) for name in STATE)


# Broken safetensors


def header(content, size=None):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        header({}, size=2**63),
        header({}, size=2**62) + b"x" * 100,
        header(b"{not json"),
        header(b"[" * 100_000),
        header({"x": tensor([4], 0, 16)}),
        header({"x": tensor([2**40, 2**40], 0, 16)}) + b"\0" * 16,
        header({"x": tensor([2**62], 0, 2**64 - 1)}) + b"\0" * 16,
        header({"x": tensor([4], 0, 12)}) + b"\0" * 12,
        header({"x": tensor([4], 16, 32)}) + b"\0" * 32,
        header({"x": tensor([4], 0, 16), "y": tensor([4], 8, 24)}) + b"\0" * 24,
        header({"x": tensor([-4], 0, 16)}) + b"\0" * 16,
        header({"x": tensor([4], 0, 16, dtype="Q99")}) + b"\0" * 16,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_broken_safetensors(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


@given(st.integers(0, 300), st.integers(0, 255), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_safetensors(tmp_path, at, byte, cut):
    file = tmp_path / "model.safetensors"
    save_file(STATE, file)
    data = bytearray(file.read_bytes())
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] = byte
    file.write_bytes(data)
    try:
        with open_checkpoint(tmp_path) as source:
            for name in source.tensors:
                source.load(name)
    except CheckpointError as error:
        assert "model.safetensors" in str(error)  # noqa: PT017


# Hostile indexes


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\b", "c:x", ".hidden", 7, None, ["x"]],
    ids=repr,
)
def test_index_path_traversal_is_refused(tmp_path, place):
    (tmp_path / "d").mkdir()
    save_file(STATE, tmp_path / "x.safetensors")
    index = tmp_path / "d" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": place}}))
    with pytest.raises(CheckpointError, match="only plain names of files"):
        ShardedCheckpoint(index)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', "[" * 100_000, "\0"])
def test_an_index_that_is_none(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_an_index_whose_shard_is_missing_or_lacks_a_tensor(tmp_path):
    index = write_sharded(tmp_path, "safetensors")
    content = json.loads(index.read_text())
    content["weight_map"]["phantom"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="phantom is in model-00001"):
        open_checkpoint(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="model-00002-of-00002.safetensors does not exist"):
        open_checkpoint(tmp_path)


# Pickles


class Evil:
    """A pickle that runs code when it is loaded in the ordinary way."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    proof = tmp_path / "proof"
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1), "b": Evil(proof)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is refused.*any code.*safetensors"):
        open_checkpoint(tmp_path)
    assert not proof.exists()


def test_bare_pickle_with_code_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "proof"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(proof), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [[torch.ones(1)], torch.ones(1), {"state_dict": STATE, "epoch": 3}, {"x": 1}, {0: torch.ones(1)}],
    ids=["list", "tensor", "nested", "number", "number as a name"],
)
def test_pickles_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path):
    """An expanded tensor: four bytes in the file, a terabyte once copied."""
    torch.save({"x": torch.ones(1).expand(1 << 19, 1 << 19)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="x has 1099511627776 bytes by its shape"):
        open_checkpoint(tmp_path)


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"x": torch.eye(3).to_sparse()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="x is not a plain dense tensor"):
        open_checkpoint(tmp_path)


def test_a_compressed_archive_is_refused(tmp_path):
    """Zeros deflate a thousandfold."""
    plain = io.BytesIO()
    torch.save(STATE, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@given(at=st.integers(0, 5000), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_pickles(tmp_path, zipped, at, byte, cut):
    file = tmp_path / "pytorch_model.bin"
    torch.save(STATE, file, _use_new_zipfile_serialization=zipped)
    data = bytearray(file.read_bytes())
    at %= len(data)
    if cut:
        del data[at:]
    else:
        data[at] = byte
    file.write_bytes(data)
    try:
        with PickleFile(file) as source:
            for name in source.tensors:
                source.load(name).sum()
    except CheckpointError as error:
        assert "pytorch_model.bin" in str(error)  # noqa: PT017


# JSON


def test_json_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("bert_fast.checkpoints.files.MAX_JSON_SIZE", 10)
    (tmp_path / "x.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="19 bytes"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("kind", ["roberta", "distilbert", 3])
def test_a_config_of_another_model_names_what_is_supported(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"type {kind!r}; supported: 'bert'"):
        read_config(tmp_path / "config.json")


def test_files_that_transformers_writes(tmp_path):
    model = hf_model("BertForMaskedLM")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    with open_checkpoint(tmp_path) as source:
        assert isinstance(source, ShardedCheckpoint)
        state = model.state_dict()
        assert all(torch.equal(source.load(name), state[name]) for name in source.tensors)
        assert len(source.tensors) == len(state) - 2
