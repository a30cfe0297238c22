"""from_pretrained: the same model that transformers loads, and every name that is not there accounted for."""

import json
import warnings

import pytest
import torch
import transformers
from checkpoints.shared_data import shared
from checkpoints.toys import CLASSES, SIZES, batch, hf_model, same_state, write_google_directory
from safetensors.torch import load_file, save_file

import bert_fast
from bert_fast.checkpoints import CheckpointError, CheckpointNotFoundError


def load(name, path, **options):
    """Load with every warning an error; returns the model and its loading info."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return getattr(bert_fast, name).from_pretrained(path, output_loading_info=True, **options)


def edit(directory, change):
    """Rewrite model.safetensors: `change` gets the dictionary of its tensors."""
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


def saved(tmp_path, name="BertForPreTraining", **changes):
    model = hf_model(name, **changes)
    model.save_pretrained(tmp_path)
    return model


# The same model


@pytest.mark.parametrize("shard", ["50GB", "6KB"])
@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_writes(tmp_path, name, shard):
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    ours, info = load(name, tmp_path, strict=True)
    assert same_state(ours, theirs)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not ours.training
    assert all(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("name", ["BertModel", "BertForPreTraining"])
def test_outputs_are_those_of_transformers(tmp_path, name):
    theirs = saved(tmp_path, name)
    ours, _ = load(name, tmp_path)
    inputs = batch()
    with torch.no_grad():
        a, b = ours(**inputs), theirs(**inputs)
    assert torch.allclose(a[0][0], b[0][0], atol=1e-5)
    assert torch.allclose(a[1], b[1], atol=1e-5)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pytorch_model_bin(tmp_path, zipped):
    theirs = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    ours, _ = load("BertForPreTraining", tmp_path, strict=True)
    assert same_state(ours, theirs)


def test_a_single_file_with_its_config_beside_it_or_given(tmp_path):
    theirs = saved(tmp_path, "BertModel")
    ours, _ = load("BertModel", tmp_path / "model.safetensors", strict=True)
    assert same_state(ours, theirs)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="neither config.json nor bert_config.json; pass config="):
        load("BertModel", tmp_path / "model.safetensors")
    ours, _ = load("BertModel", tmp_path / "model.safetensors", config=bert_fast.BertConfig(**SIZES))
    assert same_state(ours, theirs)


def test_the_weights_do_not_depend_on_the_file_any_more(tmp_path):
    """Nothing stays mapped: the file may be overwritten in place while the model lives."""
    theirs = saved(tmp_path, "BertModel")
    ours, _ = load("BertModel", tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(b"\0" * size)
    assert same_state(ours, theirs)


# Names


def test_gamma_beta_names_of_early_checkpoints(tmp_path):
    theirs = saved(tmp_path)

    def age(state):
        for name in [name for name in state if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            state[old] = state.pop(name)

    edit(tmp_path, age)
    ours, info = load("BertForPreTraining", tmp_path, strict=True)
    assert same_state(ours, theirs)
    converted = info["converted_keys"]["bert.embeddings.LayerNorm.weight"]
    assert converted == "bert.embeddings.LayerNorm.gamma"


def test_position_ids_buffer_present_or_absent(tmp_path):
    theirs = saved(tmp_path)
    edit(tmp_path, lambda state: state.update({"bert.embeddings.position_ids": torch.arange(20)[None]}))
    ours, info = load("BertForPreTraining", tmp_path, strict=True)
    assert same_state(ours, theirs)
    assert info["unexpected_keys"] == set()


def test_head_from_a_bare_encoder(tmp_path):
    """No `bert.` prefix in the file; the encoder is loaded and the head is new, as in transformers to the bit."""
    saved(tmp_path, "BertModel")
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match=r"classifier\.bias, classifier\.weight|classifier\.weight, classifier\.bias"):
        ours, info = bert_fast.BertForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, output_loading_info=True
        )
    torch.manual_seed(3)
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert same_state(ours, theirs)
    assert ours.config.num_labels == 5


def test_bare_encoder_from_a_head(tmp_path):
    """With the prefix in the file; heads are unexpected, and said to be, but no reason to warn."""
    theirs = saved(tmp_path)
    ours, info = load("BertModel", tmp_path)
    assert same_state(ours, theirs.bert)
    assert info["unexpected_keys"] == {name for name in load_file(tmp_path / "model.safetensors") if name[:4] == "cls."}


def test_absent_pooler(tmp_path):
    theirs = saved(tmp_path, "BertForMaskedLM")
    ours, info = load("BertModel", tmp_path, add_pooling_layer=False)
    assert info["missing_keys"] == set()
    assert ours.pooler is None
    with pytest.warns(UserWarning, match=r"pooler\.dense\.weight, pooler\.dense\.bias .*random"):
        ours, info = bert_fast.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    assert torch.equal(ours.embeddings.word_embeddings.weight, theirs.bert.embeddings.word_embeddings.weight)
    assert ours.pooler.dense.bias.eq(0).all()
    assert 0.01 < ours.pooler.dense.weight.std() < 0.03


def test_present_pooler_in_a_model_without_one(tmp_path):
    saved(tmp_path, "BertModel")
    _, info = load("BertModel", tmp_path, add_pooling_layer=False)
    assert info["unexpected_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}


# Tied weights


TIED = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def test_tied_decoder_weight_and_bias_absent_from_the_file(tmp_path):
    saved(tmp_path)
    assert not TIED & set(load_file(tmp_path / "model.safetensors"))
    ours, info = load("BertForPreTraining", tmp_path, strict=True)
    assert ours.cls.predictions.decoder.weight is ours.bert.embeddings.word_embeddings.weight
    assert ours.cls.predictions.decoder.bias is ours.cls.predictions.bias
    assert set(info["tied_keys"]) == TIED


@pytest.mark.parametrize("present", sorted(TIED))
def test_only_the_other_of_two_tied_names_is_in_the_file(tmp_path, present):
    theirs = saved(tmp_path)
    source = "bert.embeddings.word_embeddings.weight" if present.endswith("weight") else "cls.predictions.bias"
    edit(tmp_path, lambda state: state.update({present: state.pop(source)}))
    ours, _ = load("BertForPreTraining", tmp_path, strict=True)
    assert same_state(ours, theirs)


def test_both_tied_names_with_equal_values(tmp_path):
    theirs = saved(tmp_path)
    edit(tmp_path, lambda state: state.update({name: theirs.state_dict()[name].clone() for name in TIED}))
    ours, _ = load("BertForPreTraining", tmp_path, strict=True)
    assert same_state(ours, theirs)
    assert ours.cls.predictions.decoder.weight is ours.bert.embeddings.word_embeddings.weight


def test_both_tied_names_with_different_values_are_kept_apart(tmp_path):
    """As in transformers: the config is wrong, the weights are right."""
    saved(tmp_path)
    other = torch.randn(SIZES["vocab_size"], SIZES["hidden_size"])
    edit(tmp_path, lambda state: state.update({"cls.predictions.decoder.weight": other}))
    with pytest.warns(UserWarning, match="differ although the config ties them"):
        ours = bert_fast.BertForPreTraining.from_pretrained(tmp_path)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path)
    assert same_state(ours, theirs)
    assert torch.equal(ours.cls.predictions.decoder.weight, other)
    assert ours.config.tie_word_embeddings is False
    ours.save_pretrained(tmp_path / "again")
    again, _ = load("BertForPreTraining", tmp_path / "again", strict=True)
    assert same_state(again, ours)


def test_two_biases_with_different_values(tmp_path):
    """Of these transformers adds the decoder's."""
    saved(tmp_path)
    other = torch.randn(SIZES["vocab_size"])
    edit(tmp_path, lambda state: state.update({"cls.predictions.decoder.bias": other}))
    ours, _ = load("BertForPreTraining", tmp_path)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path)
    inputs = batch()
    assert torch.allclose(ours(**inputs)[0][0], theirs(**inputs)[0][0], atol=1e-5)


def test_untied_models(tmp_path):
    theirs = saved(tmp_path, tie_word_embeddings=False)
    ours, _ = load("BertForPreTraining", tmp_path)
    assert ours.cls.predictions.decoder.weight is not ours.bert.embeddings.word_embeddings.weight
    inputs = batch()
    assert torch.allclose(ours(**inputs)[0][0], theirs(**inputs)[0][0], atol=1e-5)


# What does not fit


def test_padded_vocabulary_is_a_clear_error_unless_asked_for(tmp_path):
    saved(tmp_path)
    message = r"word_embeddings\.weight is \[40, 16\], not \[48, 16\].*vocab_size=.*ignore_mismatched_sizes"
    with pytest.raises(CheckpointError, match=message):
        load("BertForPreTraining", tmp_path, vocab_size=48)
    with pytest.warns(UserWarning, match=r"word_embeddings\.weight.*random"):
        ours, info = bert_fast.BertForPreTraining.from_pretrained(
            tmp_path, vocab_size=48, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert ours.bert.embeddings.word_embeddings.weight.shape == (48, 16)
    assert ("bert.embeddings.word_embeddings.weight", (40, 16), (48, 16)) in info["mismatched_keys"]
    with pytest.raises(CheckpointError, match="does not have the shapes"):
        load("BertForPreTraining", tmp_path, vocab_size=48, ignore_mismatched_sizes=True, strict=True)


def test_resized_embeddings_round_trip(tmp_path):
    saved(tmp_path)
    ours, _ = load("BertForPreTraining", tmp_path)
    ours.resize_token_embeddings(45)
    ours.save_pretrained(tmp_path / "resized")
    again, _ = load("BertForPreTraining", tmp_path / "resized", strict=True)
    assert same_state(again, ours)
    theirs, info = transformers.BertForPreTraining.from_pretrained(tmp_path / "resized", output_loading_info=True)
    assert not any(info.values())
    assert same_state(ours, theirs)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("BertForQuestionAnswering", "BertModel", r"Missing: qa_outputs\.weight, qa_outputs\.bias"),
        ("BertModel", "BertForQuestionAnswering", r"Unexpected: qa_outputs\.(bias|weight), qa_outputs\.(bias|weight)"),
    ],
)
def test_strict_names_what_is_missing_and_unexpected(tmp_path, name, source, message):
    saved(tmp_path, source)
    with pytest.raises(CheckpointError, match=message):
        load(name, tmp_path, strict=True, **({"add_pooling_layer": False} if name == "BertModel" else {}))


def test_a_checkpoint_of_which_nothing_fits(tmp_path):
    saved(tmp_path)
    save_file({"wte.weight": torch.ones(2), "h.0.attn": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor of this model; it has .*wte\.weight"):
        load("BertModel", tmp_path)


def test_two_tensors_for_one_parameter(tmp_path):
    saved(tmp_path, "BertModel")
    edit(tmp_path, lambda state: state.update({"bert.pooler.dense.bias": torch.ones(16)}))
    with pytest.raises(CheckpointError, match=r"both mean pooler\.dense\.bias"):
        load("BertModel", tmp_path)


@pytest.mark.parametrize("size", [10**9, 10**13, 10**30], ids=str)
@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "intermediate_size", "vocab_size", "num_labels", "max_position_embeddings"]
)
def test_a_config_of_absurd_sizes_allocates_nothing(tmp_path, name, size):
    saved(tmp_path, "BertModel")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, name: size}))
    with pytest.raises(CheckpointError, match=f"{name}|absurd|shapes"):
        load("BertModel", tmp_path)


def test_missing_weights_of_absurd_size_are_an_error(tmp_path):
    saved(tmp_path, "BertModel")
    edit(tmp_path, lambda state: [state.pop(name) for name in list(state) if "position" in name])
    with pytest.raises(CheckpointError, match="does not belong to this config"):
        load("BertModel", tmp_path, max_position_embeddings=10**9)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": "16"}, {"hidden_size": -1}, {"num_attention_heads": 5}, {"id2label": 3}, {"dtype": "int8"}],
    ids=str,
)
def test_a_config_that_makes_no_sense(tmp_path, change):
    saved(tmp_path, "BertModel")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load("BertModel", tmp_path)


def test_another_kind_of_model_names_what_is_supported(tmp_path):
    model = transformers.RobertaModel(transformers.RobertaConfig(**SIZES))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'roberta'; supported: 'bert'"):
        load("BertModel", tmp_path)


# Arguments


@pytest.mark.parametrize(
    "option",
    [{"dtype": torch.bfloat16}, {"torch_dtype": "float16"}, {"dtype": "float64"}, {"dtype": "auto"}, {}],
    ids=str,
)
def test_dtype_is_as_in_transformers(tmp_path, option):
    theirs = saved(tmp_path, "BertModel")
    theirs.half().save_pretrained(tmp_path)
    ours, _ = load("BertModel", tmp_path, **option)
    theirs = transformers.BertModel.from_pretrained(tmp_path, **option)
    assert ours.dtype == theirs.dtype
    assert {p.dtype for p in ours.parameters()} == {theirs.dtype}
    assert ours.config.dtype == str(theirs.dtype).removeprefix("torch.")
    assert same_state(ours, theirs)


def test_without_a_word_in_the_config_dtype_is_that_of_the_weights(tmp_path):
    saved(tmp_path, "BertModel").bfloat16().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load("BertModel", tmp_path)[0].dtype == torch.bfloat16
    (tmp_path / "config.json").write_text(json.dumps({**values, "torch_dtype": "float16"}))
    assert load("BertModel", tmp_path)[0].dtype == torch.float16


@pytest.mark.parametrize(
    "option", [{}, {"device": "cpu"}, {"device_map": "cpu"}, {"device_map": {"": torch.device("cpu")}}], ids=str
)
def test_device(tmp_path, option):
    saved(tmp_path, "BertModel")
    assert load("BertModel", tmp_path, **option)[0].device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("option", [{"device": "cuda"}, {"device_map": 0}, {"device_map": {"": "cuda:0"}}])
def test_device_gpu(tmp_path, option):
    theirs = saved(tmp_path)
    ours, _ = load("BertForPreTraining", tmp_path, **option)
    assert {p.device.type for p in ours.parameters()} == {"cuda"}
    assert ours.cls.predictions.decoder.weight is ours.bert.embeddings.word_embeddings.weight
    assert same_state(ours.cpu(), theirs)


@pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attention_2", None])
def test_known_attention_names_all_mean_our_kernels(tmp_path, name):
    saved(tmp_path, "BertModel")
    load("BertModel", tmp_path, attn_implementation=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_implementation": "magic"}, "attn_implementation must be one of .*sdpa.*not 'magic'"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config= is not supported"),
        ({"load_in_4bit": True}, "load_in_4bit= is not supported"),
        ({"device_map": "auto"}, "device must be one like"),
        ({"device_map": {"bert": 0}}, "device_map must be one device"),
        ({"device": "cpu", "device_map": "cuda"}, "contradict"),
        ({"device": "meta"}, "meta"),
        ({"device": 1.5}, "device must be"),
        ({"dtype": torch.int8}, "dtype must be one of float32"),
        ({"dtype": "half16"}, "dtype must be one of float32.*'half16'"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "contradict"),
        ({"weights_only": False}, "weights_only=False"),
        ({"gguf_file": "x"}, "gguf_file= is not supported"),
        ({"state_dict": {"a": 1}}, "state_dict= is not supported"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_named(tmp_path, options, message):
    saved(tmp_path, "BertModel")
    with pytest.raises(ValueError, match=message):
        load("BertModel", tmp_path, **options)


def test_what_makes_no_difference_is_accepted(tmp_path):
    saved(tmp_path, "BertModel")
    options = {"low_cpu_mem_usage": True, "trust_remote_code": True, "quantization_config": None, "from_tf": False}
    load("BertModel", tmp_path, **options)


def test_unknown_arguments_are_a_type_error_that_names_them(tmp_path):
    saved(tmp_path, "BertModel")
    with pytest.raises(TypeError, match="wibble"):
        load("BertModel", tmp_path, wibble=3)
    with pytest.raises(TypeError, match="hidden_act"):
        load("BertModel", tmp_path, config=bert_fast.BertConfig(**SIZES), hidden_act="relu")


def test_config_overrides(tmp_path):
    saved(tmp_path, "BertModel")
    ours, _ = load("BertModel", tmp_path, hidden_dropout_prob=0.3, output_hidden_states=True, hidden_act="gelu_new")
    assert ours.config.hidden_dropout_prob == 0.3
    assert len(ours(**batch()).hidden_states) == 3
    with pytest.raises(ValueError, match="hidden_dropout_prob"):
        load("BertModel", tmp_path, hidden_dropout_prob=2)


def test_a_given_config_is_used_and_not_changed(tmp_path):
    saved(tmp_path, "BertModel")
    config = bert_fast.BertConfig(**SIZES, hidden_act="relu")
    before = config.to_dict()
    ours, _ = load("BertModel", tmp_path, config=config, dtype="bfloat16")
    assert ours.config.hidden_act == "relu"
    assert config.to_dict() == before
    ours, _ = load("BertModel", tmp_path, config=tmp_path / "config.json")
    assert ours.config.hidden_act == "gelu"


def test_a_subclass_with_modules_and_constants_of_its_own(tmp_path):
    class Tagger(bert_fast.BertModel):
        def __init__(self, config, width=3):
            super().__init__(config)
            self.lstm = torch.nn.LSTM(config.hidden_size, width)
            self.register_buffer("steps", torch.arange(4.0), persistent=False)
            self.post_init()

    saved(tmp_path, "BertModel")
    with pytest.warns(UserWarning, match=r"lstm\.weight_ih_l0"):
        ours = Tagger.from_pretrained(tmp_path, width=5)
    assert ours.steps.tolist() == [0, 1, 2, 3]
    assert ours.lstm(torch.ones(2, 1, 16))[0].isfinite().all()
    assert ours.lstm.weight_ih_l0.std() > 0.1


# TensorFlow


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "name", ["BertModel", "BertForPreTraining", "BertForSequenceClassification", "BertForQuestionAnswering"]
)
def test_googles_directory_loads_directly(tmp_path, name, shards):
    """Kernels are transposed, optimizer slots and global_step skipped, heads included, labels counted."""
    inner = "BertForPreTraining" if name == "BertModel" else name
    theirs = hf_model(inner, **({"num_labels": 3} if "Sequence" in name else {}))
    write_google_directory(tmp_path / "g", theirs, shards=shards)
    ours, info = load(name, tmp_path / "g")
    assert same_state(ours, theirs.bert if name == "BertModel" else theirs)
    assert info["missing_keys"] == set()
    assert len(info["unexpected_keys"]) == (7 if name == "BertModel" else 0)
    assert all(unexpected.startswith("cls/") for unexpected in info["unexpected_keys"])
    assert ours.config.num_labels == (3 if "Sequence" in name else 2)


@pytest.mark.parametrize("what", ["bert_model.ckpt", "bert_model.ckpt.index"])
def test_a_tensorflow_prefix_or_index(tmp_path, what):
    theirs = hf_model()
    write_google_directory(tmp_path, theirs)
    ours, _ = load("BertForPreTraining", tmp_path / what, strict=True)
    assert same_state(ours, theirs)


def test_adam_slots_are_skipped_but_unknown_tensors_are_reported(tmp_path):
    from checkpoints.bundle_writer import bundle
    from checkpoints.toys import tensorflow_tensors

    theirs = hf_model()
    write_google_directory(tmp_path, theirs)
    tensors = tensorflow_tensors(theirs)
    tensors["loss/crf"] = tensors["global_step"]
    bundle(tensors).write(tmp_path / "bert_model.ckpt")
    _, info = load("BertForPreTraining", tmp_path)
    assert info["unexpected_keys"] == {"loss/crf"}


def test_real_tensorflow_checkpoint():
    path = shared("keras_bert_tf1_tiny")
    ours, info = load("BertForPreTraining", path, strict=True)
    assert len(info["converted_keys"]) == 46
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    assert ours(ids, attention_mask=(ids != 0).long()).prediction_logits.isfinite().all()
