"""From what a user calls a checkpoint to a path on this machine. The network is touched for hub names alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bert_fast.checkpoints.files import COMPANIONS, CONFIG, GOOGLE_CONFIG, INDEX_SUFFIX, weight_names
from bert_fast.checkpoints.source import CheckpointError, CheckpointNotFoundError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index", ".json")

_SMALL_FILES = (CONFIG, GOOGLE_CONFIG, *COMPANIONS, "1_Pooling/config.json", "2_Normalize/config.json")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The local path of a checkpoint: a path as it is, a hub name as the directory it is cached or downloaded to.

    A path may be a directory, a file of weights, or a TensorFlow prefix (`DIR/bert_model.ckpt`). Of a hub repository
    only the preferred kind of weights and small files are fetched. Offline (no network, `HF_HUB_OFFLINE=1` or
    `local_files_only=True`) the hub's cache is used as it is.

    Raises:
        CheckpointNotFoundError: there is no such path, repository, revision or cached copy; says what to do.
    """
    text = os.fspath(name_or_path)
    if not text:
        raise CheckpointNotFoundError("the name or path of the checkpoint is empty")
    path = Path(text).expanduser()
    if not path.exists() and not path.with_name(f"{path.name}.index").is_file():
        if isinstance(name_or_path, os.PathLike) or _looks_like_a_path(text):
            raise CheckpointNotFoundError(f"no such file or directory: {text!r} (looked at {path.absolute()})")
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token}
        names = [_inside(subfolder, name) for name in weight_names(variant, use_safetensors)]
        path = _from_hub(text, names, subfolder, local_files_only, force_download, hub)
    return path / _checked_subfolder(subfolder) if subfolder else path


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "~")) or text.endswith(_FILE_ENDINGS) or _HUB_NAME.fullmatch(text) is None


def _checked_subfolder(subfolder: str) -> str:
    parts = Path(subfolder).parts
    if Path(subfolder).is_absolute() or ".." in parts:
        raise CheckpointError(f"subfolder must lie inside the checkpoint, not at {subfolder!r}")
    return subfolder


def _inside(subfolder: str, name: str) -> str:
    return f"{_checked_subfolder(subfolder).strip('/')}/{name}" if subfolder else name


def _from_hub(
    name: str, weights: list[str], subfolder: str, local_files_only: bool, force_download: bool, hub: dict
) -> Path:
    from huggingface_hub import constants, errors

    cause: Exception | None = None
    if not (local_files_only or constants.HF_HUB_OFFLINE):
        try:
            return _download(name, weights, subfolder, force_download, hub)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            revision = hub["revision"] or "main"
            raise CheckpointNotFoundError(
                f"{name!r} is neither a path on this machine nor a repository that the hub lets you read (revision "
                f"{revision!r}). Private and gated repositories need token=. The hub says: {error}"
            ) from error
        except CheckpointError:
            raise
        except Exception as error:  # whatever the network and its libraries raise: a cached copy will do
            cause = error
    cached = _from_cache(name, subfolder, hub)
    if cached is not None:
        return cached
    why = f"the hub cannot be reached ({cause})" if cause else "the hub is not to be asked (offline)"
    switch = "get online" if cause else "unset HF_HUB_OFFLINE and leave local_files_only=False"
    raise CheckpointNotFoundError(
        f"{name!r} is not a path on this machine, is not in the hub's cache, and {why}. Give the path of a directory "
        f"with {CONFIG} and weights; or {switch}; or download it where there is a network (hf download {name}) and "
        "copy the folder here"
    ) from cause


def _download(name: str, weights: list[str], subfolder: str, force_download: bool, hub: dict) -> Path:
    import huggingface_hub

    available = huggingface_hub.list_repo_files(name, revision=hub["revision"], token=hub["token"])
    wanted = [_inside(subfolder, file) for file in _SMALL_FILES] + _preferred(weights, available, name)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, force_download=force_download, **hub))


def _preferred(weights: list[str], available: list[str], name: str) -> list[str]:
    """The first kind of weights that the repository has, as patterns; for an index, its shards too."""
    for file in weights:
        if file in available:
            if not file.endswith(".json"):
                return [file]
            stem, ending = re.sub(rf"{re.escape(INDEX_SUFFIX)}$|\.index\..*\.json$", "", file).rsplit(".", 1)
            return [file, f"{stem}*-of-*.{ending}"]
    bundle = [file for file in available if ".ckpt." in file.rsplit("/", 1)[-1] or file.endswith("/checkpoint")]
    if bundle:
        return bundle
    raise CheckpointNotFoundError(f"the repository {name!r} has none of {', '.join(weights)}")


def _from_cache(name: str, subfolder: str, hub: dict) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for config in (CONFIG, GOOGLE_CONFIG):
        file = _inside(subfolder, config)
        found = try_to_load_from_cache(name, file, cache_dir=hub["cache_dir"], revision=hub["revision"])
        if isinstance(found, str):
            return Path(found[: -len(file)])
    return None
