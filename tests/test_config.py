"""BertConfig: transformers' defaults and JSON, both ways; nothing lost; what is wrong is named."""

import copy
import json
import pickle

import pytest
import torch
import transformers

from bert_fast import BertConfig

OURS_ALONE = {"batch_invariant", "hidden_positions", "quantization"}


def theirs_of(config):
    return transformers.BertConfig.from_dict(json.loads(config.to_json_string()))


def check_agree(mine, theirs):
    values, theirs = mine.to_dict(), theirs.to_dict()
    for name in set(values) & set(theirs) - {"id2label", "architectures", "transformers_version"}:
        assert values[name] == theirs[name], name
    assert {int(k): v for k, v in values["id2label"].items()} == theirs["id2label"]


def test_defaults_are_those_of_transformers():
    mine, theirs = BertConfig(), transformers.BertConfig()
    check_agree(mine, theirs)
    assert not set(mine.to_dict()) - set(theirs.to_dict()) - OURS_ALONE
    assert mine.num_labels == theirs.num_labels == 2
    assert mine.use_return_dict is theirs.use_return_dict is True


CHANGES = {
    "sizes": {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 200, "num_hidden_layers": 3},
    "vocabulary": {"vocab_size": 50, "pad_token_id": 3, "type_vocab_size": 1, "max_position_embeddings": 9},
    "no_padding_token": {"pad_token_id": None},
    "tanh": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-5},
    "dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.25, "classifier_dropout": 0.5},
    "num_labels": {"num_labels": 5},
    "one_label": {"num_labels": 1, "problem_type": "regression"},
    "id2label": {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}},
    "untied": {"tie_word_embeddings": False},
    "dtype": {"dtype": "bfloat16"},
    "outputs": {"output_hidden_states": True, "return_dict": False},
}


@pytest.mark.parametrize("changes", CHANGES)
def test_written_json_means_the_same_to_transformers_and_back(tmp_path, changes):
    mine = BertConfig(**CHANGES[changes])
    mine.save_pretrained(tmp_path / "ours")
    theirs = transformers.BertConfig.from_pretrained(tmp_path / "ours")
    check_agree(mine, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    back = BertConfig.from_pretrained(tmp_path / "theirs")
    check_agree(back, theirs)
    check_agree(mine, transformers.BertConfig(**CHANGES[changes]))
    assert BertConfig.from_pretrained(tmp_path / "ours") == mine


def test_unknown_keys_are_kept_and_written_back(tmp_path):
    config = BertConfig.from_dict({"hidden_size": 24, "gradient_checkpointing": False, "my_key": {"a": [1]}})
    assert config.my_key == {"a": [1]}
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["my_key"] == {"a": [1]}
    assert written["gradient_checkpointing"] is False
    assert written["model_type"] == "bert"
    assert BertConfig.from_pretrained(tmp_path) == config


def test_custom_label_names_survive_beside_default_ones(tmp_path):
    config = BertConfig(id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={"no": 0, "yes": 1})
    config.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path).label2id == {"no": 0, "yes": 1}


def test_google_bert_config_json_is_read(tmp_path):
    google = {
        "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    }
    (tmp_path / "bert_config.json").write_text(json.dumps(google))
    for path in (tmp_path, tmp_path / "bert_config.json", str(tmp_path)):
        config = BertConfig.from_pretrained(path)
        assert config.hidden_size == 128
        assert config.directionality == "bidi"


def test_overrides_win_and_num_labels_renames():
    values = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "hidden_size": 24}
    config = BertConfig.from_dict(values, num_labels=5, hidden_size=36)
    assert config.num_labels == 5
    assert config.id2label[4] == "LABEL_4"
    assert config.hidden_size == 36
    assert BertConfig.from_dict(values).id2label == {0: "a", 1: "b", 2: "c"}


def test_setting_num_labels():
    config = BertConfig()
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["bfloat16", torch.bfloat16], ids=["name", "torch"])
def test_dtype_under_either_name(key, value):
    config = BertConfig(**{key: value})
    assert config.dtype == "bfloat16"
    assert not hasattr(config, "torch_dtype")
    assert json.loads(config.to_json_string())["dtype"] == "bfloat16"


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_equal(how):
    config = BertConfig(num_labels=4, hidden_size=24, my_key=1)
    assert how(config) == config
    assert config != BertConfig()
    assert config != 5
    assert "hidden_size" in repr(config)


def test_a_transformers_config_dictionary_is_taken():
    theirs = transformers.BertConfig(hidden_size=24, num_labels=3, num_attention_heads=2)
    check_agree(BertConfig(**theirs.to_dict()), theirs)
    check_agree(BertConfig.from_dict(theirs.to_dict()), theirs)


BAD = {
    "vocab_size_0": ({"vocab_size": 0}, "vocab_size must be a positive integer, not 0"),
    "hidden_size_float": ({"hidden_size": 48.0}, "hidden_size must be a positive integer, not 48.0"),
    "heads_negative": ({"num_attention_heads": -1}, "num_attention_heads must be a positive integer, not -1"),
    "intermediate_text": ({"intermediate_size": "3072"}, "intermediate_size must be a positive integer, not '3072'"),
    "positions_none": ({"max_position_embeddings": None}, "max_position_embeddings must be a positive integer"),
    "types_true": ({"type_vocab_size": True}, "type_vocab_size must be a positive integer, not True"),
    "layers_negative": ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer of at least 0, not -1"),
    "heads_do_not_divide": ({"hidden_size": 50, "num_attention_heads": 4}, r"hidden_size \(50\) must be a multiple"),
    "dropout_above_1": ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob must lie in \[0, 1\], not 1.5"),
    "attention_dropout_negative": ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob must lie"),
    "classifier_dropout_2": ({"classifier_dropout": 2}, "classifier_dropout must lie"),
    "pad_beyond_vocabulary": ({"vocab_size": 10, "pad_token_id": 10}, "pad_token_id must lie in"),
    "pad_negative": ({"pad_token_id": -1}, "pad_token_id must lie in"),
    "hidden_positions": ({"hidden_positions": "some"}, "hidden_positions must be None or one of"),
    "relative_positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
    "model_type": ({"model_type": "gpt2"}, "model_type"),
    "num_labels_0": ({"num_labels": 0}, "num_labels must be a positive integer, not 0"),
    "num_labels_contradict": ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels is 3 but id2label names 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_values_are_named(case):
    values, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        BertConfig(**values)


def test_another_models_config_is_refused():
    with pytest.raises(ValueError, match="model_type 'roberta' is not supported; supported: bert"):
        BertConfig.from_dict({"model_type": "roberta"})


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json or bert_config.json at"):
        BertConfig.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    for content, message in (("{", "is not valid JSON"), ("[1]", "must hold a JSON object, not list")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            BertConfig.from_pretrained(tmp_path)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="is not valid JSON"):
        BertConfig.from_pretrained(tmp_path)
