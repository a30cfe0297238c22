"""convert: a directory that transformers loads to the same outputs, complete or absent."""

import json

import pytest
import torch
import transformers
from checkpoints.bundle_writer import bundle
from checkpoints.shared_data import shared
from checkpoints.toys import CLASSES, VOCAB, batch, hf_model, same_state, tensorflow_tensors, write_google_directory
from safetensors.torch import load_file

import bert_fast
from bert_fast.checkpoints import CheckpointError, CheckpointNotFoundError
from bert_fast.checkpoints import convert as module
from bert_fast.checkpoints.convert import convert

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def transformers_load(name, path):
    model, info = getattr(transformers, name).from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    return model


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForQuestionAnswering",
    ],
)
def test_googles_directory_becomes_one_of_transformers(tmp_path, name, shards):
    theirs = hf_model(name, **({"num_labels": 3} if "Sequence" in name else {}))
    write_google_directory(tmp_path / "google", theirs, shards=shards)
    done = convert(tmp_path / "google", tmp_path / "hf")
    assert files(tmp_path / "hf") == FILES
    assert done.architecture == name
    assert done.tokenizer is None
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [name]
    assert config["model_type"] == "bert"
    assert config["dtype"] == "float32"
    model = transformers_load(name, tmp_path / "hf").eval()
    assert same_state(model, theirs)
    assert same_state(getattr(bert_fast, name).from_pretrained(tmp_path / "hf", strict=True), theirs)
    inputs = batch()
    assert all(torch.equal(a, b) for a, b in zip(model(**inputs).values(), theirs(**inputs).values(), strict=True))
    assert done.dropped
    assert all("adam_" in dropped or dropped == "global_step" for dropped in done.dropped)


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForNextSentencePrediction"])
def test_a_part_of_the_heads_can_be_asked_for(tmp_path, name):
    theirs = hf_model()
    write_google_directory(tmp_path / "google", theirs)
    done = convert(tmp_path / "google", tmp_path / "hf", model_class=getattr(bert_fast, name))
    model = transformers_load(name, tmp_path / "hf")
    assert done.architecture == name
    state = theirs.bert.state_dict() if name == "BertModel" else theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert any(dropped.startswith("cls/") for dropped in done.dropped)


def test_the_real_checkpoint(tmp_path):
    source = shared("keras_bert_tf1_tiny")
    done = convert(source, tmp_path / "hf")
    assert len(done.written) == 46
    assert len(done.dropped) == 93
    assert (tmp_path / "hf" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    theirs = transformers_load("BertForPreTraining", tmp_path / "hf").eval()
    ours = bert_fast.BertForPreTraining.from_pretrained(source, strict=True)
    assert same_state(ours, theirs)
    ids = torch.arange(14).view(2, 7)
    for a, b in zip(ours(ids).to_tuple(), theirs(ids).to_tuple(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_an_index_without_values_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="data-00000-of-00001 is missing"):
        convert(shared("google_bert_base_index_only"), tmp_path / "hf")
    assert files(tmp_path) == []


# Tokenizers

TEXTS = ["Wordca wordab Unknown", "WORDAA, wordbb!", "[CLS] w\u00f6rdac", ""]


CASED = [*VOCAB[:30], *(token.capitalize() for token in VOCAB[20:30])]


@pytest.mark.parametrize(("vocab", "lower"), [(VOCAB, True), (CASED, False)], ids=["uncased", "cased"])
def test_tokenizer_files(tmp_path, vocab, lower):
    write_google_directory(tmp_path / "google", hf_model(), vocab=vocab)
    convert(tmp_path / "google", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is lower
    assert config["model_max_length"] == 20
    assert config["tokenizer_class"] == "BertTokenizer"
    assert (tmp_path / "hf" / "vocab.txt").read_text().split() == vocab
    converted = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "vocab.txt").write_text("\n".join(vocab) + "\n")
    plain = transformers.BertTokenizer.from_pretrained(tmp_path / "plain", do_lower_case=lower)
    ours = bert_fast.Tokenizer.from_pretrained(tmp_path / "hf")
    for text in TEXTS:
        assert converted(text)["input_ids"] == plain(text)["input_ids"] == ours(text)["input_ids"]


def test_case_can_be_chosen(tmp_path):
    write_google_directory(tmp_path / "google", hf_model())
    convert(tmp_path / "google", tmp_path / "hf", do_lower_case=False)
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["do_lower_case"] is False
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").tokenize("Wordaa wordaa") == ["[UNK]", "wordaa"]


@pytest.mark.parametrize("vocab", [None, ["no", "special", "tokens"]])
def test_weights_without_a_usable_vocabulary(tmp_path, vocab):
    write_google_directory(tmp_path / "google", hf_model(), vocab=vocab)
    done = convert(tmp_path / "google", tmp_path / "hf")
    assert done.tokenizer
    assert done.tokenizer in str(done)
    expected = ["config.json", "model.safetensors", *(["vocab.txt"] if vocab else [])]
    assert files(tmp_path / "hf") == expected


# .bin to safetensors


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_bin_to_safetensors(tmp_path, name, sharded):
    theirs = hf_model(name)
    source = tmp_path / "old"
    theirs.save_pretrained(source)
    (source / "model.safetensors").unlink()
    state = {**theirs.state_dict(), "bert.embeddings.position_ids": torch.arange(20)[None]}
    early = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in state.items()}
    if sharded:
        names = list(early)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in parts.items():
            torch.save({key: early[key].clone() for key in part}, source / file)
        weight_map = {key: file for file, part in parts.items() for key in part}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(early, source / "pytorch_model.bin")
    (source / "vocab.txt").write_text("\n".join(VOCAB))
    (source / "special_tokens_map.json").write_text("{}")
    done = convert(source, tmp_path / "new", max_shard_size="9KB")
    assert done.architecture == name
    assert done.dropped == ("bert.embeddings.position_ids",)
    assert "model.safetensors.index.json" in files(tmp_path / "new")
    assert {"vocab.txt", "special_tokens_map.json", "tokenizer.json"} <= set(files(tmp_path / "new"))
    assert not list((tmp_path / "new").glob("*.bin*"))
    assert same_state(transformers_load(name, tmp_path / "new"), theirs)


def test_dtype_and_extra_tensors(tmp_path):
    theirs = hf_model("BertModel")
    theirs.save_pretrained(tmp_path / "old")
    state = {**theirs.state_dict(), "my.head": torch.ones(3), "my.count": torch.tensor(3)}
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "new", dtype="bfloat16")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    assert {key: str(value.dtype) for key, value in tensors.items() if key.startswith("my.")} == {
        "my.head": "torch.bfloat16",
        "my.count": "torch.int64",
    }
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"
    convert(tmp_path / "old", tmp_path / "strict", model_class="BertModel")
    assert set(load_file(tmp_path / "strict" / "model.safetensors")) == set(theirs.state_dict())


def test_sentence_transformers_folders_come_along(tmp_path):
    hf_model("BertModel").save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "modules.json").write_text("[]")
    (tmp_path / "old" / "1_Pooling").mkdir()
    (tmp_path / "old" / "1_Pooling" / "config.json").write_text("{}")
    convert(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new" / "1_Pooling" / "config.json").read_text() == "{}"


# Complete or absent


def test_a_full_target_is_refused_unless_forced(tmp_path):
    write_google_directory(tmp_path / "google", hf_model())
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(tmp_path / "google", tmp_path / "hf")
    assert files(tmp_path / "hf") == ["precious"]
    convert(tmp_path / "google", tmp_path / "hf", force=True)
    assert files(tmp_path / "hf") == FILES
    assert files(tmp_path) == ["google", "hf"]


@pytest.mark.parametrize("step", ["save_weights", "_tokenizer_files", "writable"])
def test_a_failure_at_any_step_leaves_nothing(tmp_path, monkeypatch, step):
    write_google_directory(tmp_path / "google", hf_model())

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(OSError, match="disk full"):
        convert(tmp_path / "google", tmp_path / "hf")
    assert files(tmp_path) == ["google"]


def test_damage_leaves_nothing(tmp_path):
    write_google_directory(tmp_path / "google", hf_model())
    data = tmp_path / "google" / "bert_model.ckpt.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[1000] ^= 1
    data.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum"):
        convert(tmp_path / "google", tmp_path / "hf")
    assert files(tmp_path) == ["google"]


def test_a_checkpoint_that_lacks_tensors_of_its_config(tmp_path):
    model = hf_model()
    write_google_directory(tmp_path / "google", model)
    tensors = tensorflow_tensors(model)
    del tensors["bert/encoder/layer_1/output/dense/bias"]
    bundle(tensors).write(tmp_path / "google" / "bert_model.ckpt")
    with pytest.raises(CheckpointError, match=r"it lacks bert\.encoder\.layer\.1\.output\.dense\.bias \(1 in all\)"):
        convert(tmp_path / "google", tmp_path / "hf")
    assert files(tmp_path) == ["google"]


def test_unknown_tensorflow_tensors_are_left_out_and_said_to_be(tmp_path):
    model = hf_model()
    write_google_directory(tmp_path / "google", model)
    tensors = tensorflow_tensors(model, slots=False)
    tensors["loss/crf"] = tensors["output_bias"] = tensors["cls/seq_relationship/output_bias"]
    bundle(tensors).write(tmp_path / "google" / "bert_model.ckpt")
    done = convert(tmp_path / "google", tmp_path / "hf")
    assert set(done.dropped) == {"loss/crf", "output_bias"}
    assert same_state(transformers_load("BertForPreTraining", tmp_path / "hf"), model)


def test_a_wrong_model_class_is_named(tmp_path):
    with pytest.raises(ValueError, match="model_class must be one of .*BertModel.*not 'GPT'"):
        convert(tmp_path, tmp_path / "x", model_class="GPT")
