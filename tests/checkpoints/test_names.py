"""The table of names: every name of real and toy checkpoints, and the ones that only look alike."""

import json

import pytest
import torch
import transformers
from checkpoints.shared_data import shared
from checkpoints.toys import CLASSES, SIZES, hf_model, tensorflow_name

from bert_fast.checkpoints import names
from bert_fast.checkpoints.tensorflow import TensorBundle, find_bundle


def test_all_206_names_of_googles_base_map_to_the_model_of_transformers():
    directory = shared("google_bert_base_index_only")
    with TensorBundle(find_bundle(directory), index_only=True) as bundle:
        infos = bundle.tensors
    config = transformers.BertConfig(**json.loads((directory / "bert_config.json").read_text()))
    with torch.device("meta"):
        state = transformers.BertForPreTraining(config).state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if name not in names.TIED}
    mapped = {name: names.from_tensorflow(name) for name in infos}
    assert len(infos) == 206
    assert None not in mapped.values()
    got = {today: infos[name].shape[:: -1 if transposed else 1] for name, (today, transposed) in mapped.items()}
    assert got == wanted


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_the_names_that_the_table_expects(name):
    assert set(names.expected(name, SIZES["num_hidden_layers"])) == set(hf_model(name).state_dict())


@pytest.mark.parametrize("name", CLASSES)
def test_tensorflow_names_lead_back(name):
    model = hf_model(name)
    for today, value in model.state_dict().items():
        today = today if name != "BertModel" else f"bert.{today}"
        there = tensorflow_name(today)
        if there is not None:
            assert names.from_tensorflow(there) == (today, there.endswith("/kernel")), value.shape


@pytest.mark.parametrize(
    ("name", "today"),
    [
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("encoder.layer.3.output.LayerNorm.beta", "encoder.layer.3.output.LayerNorm.bias"),
        # Only a LayerNorm's gamma and beta, and only as the end of the name.
        ("my.gamma", "my.gamma"),
        ("gamma.beta.weight", "gamma.beta.weight"),
        ("LayerNorm.gamma.weight", "LayerNorm.gamma.weight"),
        ("adapter.LayerNorm.alphabeta", "adapter.LayerNorm.alphabeta"),
        ("MyLayerNorm.gamma", "MyLayerNorm.gamma"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.weight"),
    ],
)
def test_gamma_and_beta_only_as_a_layer_norm_suffix(name, today):
    assert names.modern(name) == today


@pytest.mark.parametrize(
    "name",
    [
        "global_step",
        "beta1_power",
        "beta2_power",
        "bert/embeddings/word_embeddings/adam_m",
        "bert/embeddings/word_embeddings/adam_v",
        "bert/encoder/layer_0/attention/self/key/kernel/Adam_1",
        "bert/pooler/dense/bias/AdamWeightDecayOptimizer",
        "bert/pooler/dense/bias/AdamWeightDecayOptimizer_1",
        "cls/predictions/output_bias/lamb_m",
    ],
)
def test_tensorflow_adam_slots_and_global_step_are_skipped(name):
    assert names.is_training_state(name)
    assert names.from_tensorflow(name) is None


@pytest.mark.parametrize("name", ["bert/pooler/dense/kernel", "output_bias", "my/adam_mixer", "adam_m"])
def test_weights_are_not_training_state(name):
    assert not names.is_training_state(name)


@pytest.mark.parametrize(
    "name",
    ["bert/encoder/layer_x/output/dense/kernel", "bert/pooler/dense/kernel/x", "x/output_weights", "bert/embeddings/"],
)
def test_unknown_tensorflow_names_have_no_rule(name):
    assert names.from_tensorflow(name) is None


@pytest.mark.parametrize(
    ("name", "fitted"),
    [
        ("pooler.dense.bias", "bert.pooler.dense.bias"),
        ("bert.pooler.dense.bias", "bert.pooler.dense.bias"),
        ("classifier.bias", "classifier.bias"),
        ("unknown", "unknown"),
    ],
)
def test_prefix_is_added_where_the_model_has_it(name, fitted):
    assert names.fit_prefix(name, {"bert.pooler.dense.bias", "classifier.bias"}) == fitted


def test_prefix_is_taken_off_where_the_model_lacks_it():
    assert names.fit_prefix("bert.pooler.dense.bias", {"pooler.dense.bias"}) == "pooler.dense.bias"


@pytest.mark.parametrize("name", CLASSES)
def test_architecture_is_guessed_from_the_heads(name):
    alike = {"BertForTokenClassification": "BertForSequenceClassification"}
    alike["BertForMultipleChoice"] = "BertForSequenceClassification"
    assert names.guess_architecture(list(hf_model(name).state_dict())) == alike.get(name, name)


def test_position_ids_buffers_are_known():
    assert names.is_buffer("bert.embeddings.position_ids")
    assert names.is_buffer("embeddings.position_ids")
    assert not names.is_buffer("bert.embeddings.position_embeddings.weight")
