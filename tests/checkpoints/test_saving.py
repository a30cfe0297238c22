"""save_pretrained: whole files, tied tensors once, and stale shards gone."""

import json
import os

import pytest
import torch
import transformers
from checkpoints.toys import CLASSES, SIZES, batch, hf_model, same_state
from safetensors import safe_open

import bert_fast
from bert_fast.checkpoints import CheckpointError
from bert_fast.checkpoints import save as save_module
from bert_fast.checkpoints.save import parse_size, split, writable


def ours(name="BertForPreTraining", **changes):
    torch.manual_seed(0)
    return getattr(bert_fast, name)(bert_fast.BertConfig(**{**SIZES, **changes})).eval()


def files(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("shard", ["50GB", "6KB"])
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_loads_it_with_nothing_missing_or_unexpected(tmp_path, name, shard):
    model = ours(name)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    theirs, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert same_state(model, theirs)
    assert (tmp_path / "model.safetensors").exists() == (shard == "50GB")


@pytest.mark.parametrize("name", CLASSES)
def test_it_writes_what_transformers_writes(tmp_path, name):
    """The same files, tensors and metadata; the config too, but for what only transformers has to say."""
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    getattr(bert_fast, name).from_pretrained(tmp_path / "theirs", strict=True).save_pretrained(tmp_path / "ours")
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    with (
        safe_open(tmp_path / "ours" / "model.safetensors", "pt") as a,
        safe_open(tmp_path / "theirs" / "model.safetensors", "pt") as b,
    ):
        assert a.metadata() == b.metadata() == {"format": "pt"}
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in a.keys())  # noqa: SIM118
    config, wanted = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    assert {key: config.get(key) for key in wanted} == wanted
    assert config["architectures"] == [name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_keeps_the_dtype(tmp_path, dtype):
    model = ours().to(dtype)
    model.save_pretrained(tmp_path)
    again = bert_fast.BertForPreTraining.from_pretrained(tmp_path, strict=True)
    assert again.dtype == dtype
    assert same_state(model, again)
    assert transformers.BertForPreTraining.from_pretrained(tmp_path).dtype == dtype


def test_untied_weights_are_all_written(tmp_path):
    model = ours(tie_word_embeddings=False)
    with torch.no_grad():
        model.cls.predictions.decoder.bias.normal_()
    model.save_pretrained(tmp_path)
    theirs, info = transformers.BertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    inputs = batch()
    assert torch.allclose(theirs(**inputs)[0][0], model(**inputs)[0][0], atol=1e-5)


def test_stale_shards_are_removed(tmp_path):
    model = ours()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    many = files(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="9KB")
    some = files(tmp_path)
    assert 4 < len(some) < len(many)
    assert len({name.split("-of-")[-1] for name in some if "-of-" in name}) == 1
    assert same_state(bert_fast.BertForPreTraining.from_pretrained(tmp_path, strict=True), model)
    mine = ["model-00001-of-00009.txt", "model-card.safetensors", "pytorch_model.bin", "model-1-of-2.safetensors"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    model.save_pretrained(tmp_path)
    assert files(tmp_path) == sorted(["config.json", "model.safetensors", *mine])
    model.save_pretrained(tmp_path, max_shard_size="9KB")
    assert files(tmp_path) == sorted([*some, *mine])


def test_a_failure_leaves_the_earlier_save_untouched(tmp_path, monkeypatch):
    old = ours()
    old.save_pretrained(tmp_path, max_shard_size="9KB")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("disk full")
        return save_file(*args, **kwargs)

    save_file = save_module.save_file
    monkeypatch.setattr(save_module, "save_file", failing)
    model = ours()
    model.bert.pooler.dense.weight.data.zero_()
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path, max_shard_size="9KB")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_over_the_directory_it_came_from(tmp_path):
    ours().save_pretrained(tmp_path)
    model = bert_fast.BertForPreTraining.from_pretrained(tmp_path)
    model.bert.pooler.dense.weight.data.fill_(2)
    model.save_pretrained(tmp_path)
    again = bert_fast.BertForPreTraining.from_pretrained(tmp_path, strict=True)
    assert same_state(again, model)
    assert again.bert.pooler.dense.weight.eq(2).all()


def test_the_model_and_its_config_are_not_changed_by_saving(tmp_path):
    model = ours()
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before


def test_a_given_state_dict_is_what_is_written(tmp_path):
    model = ours()
    state = {name: value.clone().half() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    again = bert_fast.BertForPreTraining.from_pretrained(tmp_path, strict=True)
    assert again.dtype == torch.float16
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "cls.predictions.decoder.weight" not in file.keys()  # noqa: SIM118 - equal, though apart in memory


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
@pytest.mark.parametrize("shard", ["50GB", "9KB"])
def test_other_users_may_read_what_is_written(tmp_path, shard):
    old = os.umask(0o022)
    try:
        ours().save_pretrained(tmp_path, max_shard_size=shard)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_other_processes_write_nothing(tmp_path):
    ours().save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("push_to_hub", True), ("safe_serialization", False), ("variant", "fp16"), ("distributed_checkpoint", True)],
)
def test_arguments_that_cannot_be_honoured_are_named(tmp_path, argument, value):
    with pytest.raises(ValueError, match=argument):
        ours().save_pretrained(tmp_path, **{argument: value})
    assert files(tmp_path) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="x is a file"):
        ours().save_pretrained(tmp_path / "x")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": 3}, "x is a int"),
        ({"x": torch.empty(2, device="meta")}, "x has no plain values"),
        ({"x": torch.eye(2).to_sparse()}, "x has no plain values"),
    ],
)
def test_what_cannot_be_written_is_named(state, message):
    with pytest.raises(CheckpointError, match=message):
        writable(state, {})


def test_views_and_shared_memory_are_written_apart(tmp_path):
    base = torch.arange(12.0)
    state = {"all": base.reshape(3, 4), "row": base[:4], "turned": base.reshape(3, 4).T, "same": base.reshape(3, 4)}
    written = writable(state, {})
    save_module.save_weights(written, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in state)
    assert os.path.getsize(tmp_path / "model.safetensors") < 1000


@pytest.mark.parametrize(("text", "count"), [("5GB", 5 * 10**9), ("1.5MiB", 3 << 19), ("1kb", 1000), (7, 7), ("9B", 9)])
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", 0, "5 bananas", None, True, "5PB"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="max_shard_size"):
        parse_size(text)


def test_shards_are_no_larger_than_asked_unless_a_tensor_is():
    tensors = {name: torch.zeros(size) for name, size in {"a": 5, "b": 5, "huge": 50, "c": 1, "d": 9}.items()}
    assert list(split(tensors, 40).values()) == [["a", "b"], ["huge"], ["c", "d"]]
