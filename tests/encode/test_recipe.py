"""What sentence-transformers folders say is obeyed, or refused where it cannot be."""

import json

import pytest
from encode import tiny

from bert_fast.encode.recipe import RecipeError, read_recipe


def test_a_plain_folder_is_mean_pooled(tmp_path):
    recipe = read_recipe(tmp_path)
    assert (recipe.pooling, recipe.normalize, recipe.max_length, recipe.prompt) == ("mean", False, None, "")
    assert read_recipe(tmp_path, "cls").pooling == "cls"


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("normalize", [True, False])
def test_modules_are_read(tmp_path, mode, spelling, normalize):
    legacy = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    config = mode if spelling == "new" else {key: key == legacy[mode] for key in legacy.values()}
    tiny.write_recipe(tmp_path, config, normalize, max_seq_length=17, do_lower_case=True)
    recipe = read_recipe(tmp_path)
    assert (recipe.pooling, recipe.normalize, recipe.max_length, recipe.lower_case) == (mode, normalize, 17, True)
    assert recipe.model_folder == tmp_path


def test_old_folders_keep_the_model_in_a_folder_of_its_own(tmp_path):
    modules = [{"path": "0_Transformer", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    tiny.write_recipe(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    recipe = read_recipe(tmp_path)
    assert recipe.model_folder == tmp_path / "0_Transformer" and recipe.max_length == 9 and not recipe.normalize


def test_default_prompt(tmp_path):
    tiny.write_recipe(tmp_path)
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "query: "}, "default_prompt_name": "query"}))
    assert read_recipe(tmp_path).prompt == "query: "
    path.write_text(json.dumps({"prompts": {"query": "query: "}, "default_prompt_name": None}))
    assert read_recipe(tmp_path).prompt == ""
    path.write_text(json.dumps({"prompts": {}, "default_prompt_name": "query"}))
    with pytest.raises(RecipeError, match="there is no prompt 'query'"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("config", ["lasttoken", "weightedmean", {"pooling_mode": ["mean", "cls"]}])
def test_pooling_that_is_not_supported_is_refused_unless_another_is_asked_for(tmp_path, config):
    tiny.write_recipe(tmp_path, config)
    with pytest.raises(RecipeError, match="1_Pooling.*is not supported; --pooling chooses mean, cls, max"):
        read_recipe(tmp_path)
    assert read_recipe(tmp_path, "cls").pooling == "cls"


def test_modules_that_are_not_supported_are_refused(tmp_path):
    tiny.write_recipe(tmp_path, extra=["Dense"])
    with pytest.raises(RecipeError, match=r"2_Dense \(Dense\) would be applied by sentence-transformers"):
        read_recipe(tmp_path)
    assert read_recipe(tmp_path, "mean").pooling == "mean"
    tiny.write_recipe(tmp_path, extra=["Dropout"])
    assert read_recipe(tmp_path).pooling == "mean"


def test_broken_files_are_named(tmp_path):
    with pytest.raises(RecipeError, match="pooling='sum': allowed are mean, cls, max"):
        read_recipe(tmp_path, "sum")
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(RecipeError, match="modules.json holds a dict, not a list"):
        read_recipe(tmp_path)
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(RecipeError, match="modules.json cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "modules.json").write_text('[{"path": "../elsewhere", "type": "x.Transformer"}]')
    with pytest.raises(RecipeError, match="leads out of the folder"):
        read_recipe(tmp_path)
    (tmp_path / "modules.json").write_text('[{"path": "1_Pooling", "type": "x.Pooling"}]')
    with pytest.raises(RecipeError, match="1_Pooling.*is missing"):
        read_recipe(tmp_path)
