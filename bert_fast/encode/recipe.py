"""How a folder's model makes sentence embeddings: what a sentence-transformers folder says beside the model itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_fast.ops.pooling import POOLINGS


class RecipeError(ValueError):
    """A sentence-transformers folder asks for something that is not done here, or its files are broken."""


@dataclass(frozen=True)
class Recipe:
    """What happens to a text before and after the model.

    Attributes:
        model_folder: where config.json, weights and tokenizer lie (old folders keep them in `0_Transformer`).
        pooling: "mean", "cls" or "max".
        normalize: whether vectors are scaled to length 1.
        max_length: tokens per text, special tokens included; None if the folder does not say.
        prompt: put before every text.
        lower_case: lower-case texts before tokenization.
    """

    model_folder: Path
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    prompt: str = ""
    lower_case: bool = False


# sentence-transformers' names of the modules that are understood; Dropout does nothing when encoding.
_TRANSFORMER, _POOLING, _NORMALIZE, _NOTHING = "Transformer", "Pooling", "Normalize", "Dropout"
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def read_recipe(folder: str | Path, pooling: str | None = None) -> Recipe:
    """Reads the recipe of a model folder; a plain BERT folder gives mean pooling without normalisation.

    pooling: given by the user, it wins, and modules after the pooling that cannot be applied are then not an error.

    Raises RecipeError for a pooling mode or module that would be needed and is not supported: vectors that are not
    what sentence-transformers gives must not come out silently.
    """
    folder = Path(folder)
    if pooling is not None and pooling not in POOLINGS:
        raise RecipeError(f"pooling={pooling!r}: allowed are {', '.join(POOLINGS)}")
    modules = _json(folder / "modules.json", list)
    if modules is None:
        found = folder / "1_Pooling" / "config.json"
        return Recipe(
            folder, pooling or (_mode(found) if found.is_file() else "mean"), **_text_settings(folder, folder)
        )
    model_folder, mode, normalize, unknown = folder, "mean", False, []
    for module in modules:
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise RecipeError(f"{folder / 'modules.json'}: path {path!r} leads out of the folder")
        if kind == _TRANSFORMER:
            model_folder = folder / path
        elif kind == _POOLING:
            mode = pooling or _mode(folder / path / "config.json")
        elif kind == _NORMALIZE:
            normalize = True
        elif kind != _NOTHING:
            unknown.append(f"{path} ({kind})")
    if unknown and pooling is None:
        raise RecipeError(
            f"{folder / 'modules.json'}: {', '.join(unknown)} would be applied by sentence-transformers and is not "
            "supported here. Say what pooling to use (--pooling) to have the vectors without it."
        )
    return Recipe(model_folder, mode, normalize, **_text_settings(folder, model_folder))


def _mode(path: Path) -> str:
    config = _json(path, dict)
    if config is None:
        raise RecipeError(f"{path} is missing, though modules.json names it")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_MODES.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise RecipeError(
            f"{path}: pooling {' + '.join(map(str, modes))} is not supported; --pooling chooses {', '.join(POOLINGS)}"
        )
    return modes[0]


def _text_settings(folder: Path, model_folder: Path) -> dict[str, Any]:
    """max_length, lower_case and prompt, as keyword arguments of Recipe."""
    sentence = _json(model_folder / "sentence_bert_config.json", dict) or {}
    overall = _json(folder / "config_sentence_transformers.json", dict) or {}
    name = overall.get("default_prompt_name")
    prompt = "" if name is None else (overall.get("prompts") or {}).get(name)
    if prompt is None:
        raise RecipeError(f"{folder / 'config_sentence_transformers.json'}: there is no prompt {name!r}")
    return {
        "max_length": sentence.get("max_seq_length"),
        "lower_case": bool(sentence.get("do_lower_case", False)),
        "prompt": prompt,
    }


def _json(path: Path, kind: type) -> Any:
    """What a JSON file holds, which must be of `kind`; None if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise RecipeError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}")
    return value
