"""PreTrainedMixin: `from_pretrained` and `save_pretrained`, with the arguments and the outcome of `transformers`."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from bert_fast.checkpoints.files import config_file, read_config
from bert_fast.checkpoints.fill import WeightsOnMeta, fill, state_of
from bert_fast.checkpoints.huggingface import open_checkpoint
from bert_fast.checkpoints.names import TIED
from bert_fast.checkpoints.options import LoadOptions, as_dtype
from bert_fast.checkpoints.plan import LoadReport, plan
from bert_fast.checkpoints.resolve import resolve
from bert_fast.checkpoints.save import MAX_SHARD_SIZE, save_weights, writable
from bert_fast.checkpoints.source import CheckpointError
from bert_fast.checkpoints.translate import Translated

_Self = TypeVar("_Self", bound="PreTrainedMixin")

MAX_LAYERS = 1000
"""More layers than this, and than the checkpoint has tensors, are a broken config."""


class PreTrainedMixin:
    """Loading and saving, for a subclass of `nn.Module` that has a `config` and `_init_weights(module)`."""

    config: Any
    config_class: ClassVar[Any]
    base_model_prefix: ClassVar[str] = "bert"
    state_dict: Callable[..., dict[str, Any]]

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model, in evaluation mode, from a path or from the hub.

        Args:
            pretrained_model_name_or_path: a directory (`config.json` and `model.safetensors` or `pytorch_model.bin`,
                also sharded; or Google's `bert_config.json` and `bert_model.ckpt.*`), a file of weights, a TensorFlow
                prefix, or a name on the hub.
            model_args: further positional arguments of the constructor.
            config: in place of the checkpoint's own: a config, or the path of one.
            dtype (or torch_dtype): a floating point dtype or its name. None and "auto" both take the dtype that the
                checkpoint's config names, else that of its first tensor, as `transformers` 5 does.
            device (or device_map): one device; torch's default device where it is not given.
            strict: whether missing, unexpected and mismatched tensors are an error.
            ignore_mismatched_sizes: initialise parameters anew whose shapes differ, rather than raise.
            output_loading_info: also return `LoadReport.to_dict()`.
            attn_implementation: accepted for compatibility; all known names mean the best kernel that can run.
            use_safetensors, variant, subfolder, revision, cache_dir, local_files_only, force_download, token: which
                files, and whence; as in `transformers`.
            kwargs: attributes of the config replace those of the file; the rest goes to the constructor.

        Returns:
            the model, or `(model, loading_info)`.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointError: it is broken, of another kind of model, does not fit, or fails `strict`.
            ValueError: an argument that cannot be honoured, by name.
            TypeError: an argument that nobody knows, by name.
        """
        options = LoadOptions.take(kwargs)
        device = options.chosen_device()
        path = resolve(pretrained_model_name_or_path, **options.whence())
        source = open_checkpoint(path, variant=options.variant, use_safetensors=options.use_safetensors)
        with Translated(source) as checkpoint:
            config, arguments = cls._config_for(checkpoint, path, config, options.rest)
            dtype = options.chosen_dtype(config.dtype or _first_dtype(checkpoint))
            config.dtype = str(dtype).removeprefix("torch.")
            model = cls._on_meta(config, model_args, arguments, checkpoint)
            state, aliases = state_of(model)
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            planned = plan(checkpoint, shapes, aliases, f"{cls.base_model_prefix}.")
            _judge(planned.report, checkpoint, cls.__name__, options)
            fill(model, checkpoint, planned, dtype=dtype, device=device)
        if planned.random:
            warnings.warn(
                f"{cls.__name__}: {', '.join(planned.random)} are not in {checkpoint.path} and were initialised at "
                "random; train the model before relying on its output",
                stacklevel=2,
            )
        model.name_or_path = str(pretrained_model_name_or_path)
        model.eval()
        return (model, planned.report.to_dict()) if options.output_loading_info else model

    @classmethod
    def _config_for(
        cls, checkpoint: Translated, path: Path, config: Any, overrides: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """The config, with what of `overrides` it has, and the rest, which the constructor must know."""
        if isinstance(config, cls.config_class):
            config, arguments = copy.deepcopy(config), overrides
        else:
            file = config_file(path if config is None else Path(config))
            values = read_config(file)
            classifier = checkpoint.tensors.get("classifier.weight")
            if file.name != "config.json" and classifier and classifier.shape and "num_labels" not in values:
                values["num_labels"] = classifier.shape[0]  # Google's config does not say
            try:
                config = cls.config_class.from_dict(values)
                if config.dtype is not None:
                    as_dtype(config.dtype, "dtype")
            except (ValueError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{file}: {error}") from error
            known = {*config.to_dict(), "num_labels"}
            arguments = {name: value for name, value in overrides.items() if name not in known}
            changed = {name: value for name, value in overrides.items() if name in known}
            if changed:
                config = cls.config_class.from_dict(values, **changed)
        unknown = [name for name in arguments if name not in inspect.signature(cls.__init__).parameters]
        if unknown:
            raise TypeError(
                f"{cls.__name__}.from_pretrained() got unexpected keyword arguments {', '.join(unknown)}: neither an "
                "option, nor an attribute of the config, nor an argument of the constructor"
            )
        return config, arguments

    @classmethod
    def _on_meta(cls: Any, config: Any, args: tuple, kwargs: dict[str, Any], checkpoint: Translated) -> Any:
        layers = config.num_hidden_layers
        if layers > max(MAX_LAYERS, len(checkpoint.tensors)):
            held = len(checkpoint.tensors)
            raise CheckpointError(f"num_hidden_layers is {layers}, but {checkpoint.path} has {held} tensors in all")
        try:
            with WeightsOnMeta():
                return cls(config, *args, **kwargs)
        except (RuntimeError, OverflowError) as error:
            raise CheckpointError(f"a model of this config cannot be built ({error}): {config}") from error

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write `model.safetensors` (in shards above `max_shard_size`) and `config.json`, as `transformers` reads them.

        Args:
            save_directory: made if it is not there. Each file is replaced whole; the config, written last, and shards
                of an earlier save, removed last, keep the directory loadable.
            is_main_process: False writes nothing, so that every process of a job may call this.
            state_dict: in place of the model's own, for instance gathered from several processes.
            max_shard_size: bytes, or a text such as "5GB".

        Raises:
            ValueError: `push_to_hub=True`, `safe_serialization=False` or an argument that cannot be honoured.
            CheckpointError: a tensor that cannot be written.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True is not supported: save, then run `hf upload REPOSITORY DIRECTORY`")
        if not safe_serialization:
            raise ValueError("safe_serialization=False is not supported: only safetensors are written")
        refused = [name for name, value in kwargs.items() if value is not None]
        if refused:
            raise ValueError(f"save_pretrained() does not support {', '.join(refused)}")
        if not is_main_process:
            return
        directory = Path(save_directory)
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"save_directory must be a directory; {directory} is a file")
        tied = TIED if self.config.tie_word_embeddings else {}
        tensors = writable(self.state_dict() if state_dict is None else state_dict, tied)
        directory.mkdir(parents=True, exist_ok=True)
        save_weights(tensors, directory, max_shard_size)
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        floats = (str(value.dtype) for value in tensors.values() if value.is_floating_point())
        config.dtype = next(floats, "float32").removeprefix("torch.")
        config.save_pretrained(directory)


def _first_dtype(checkpoint: Translated) -> torch.dtype | None:
    dtypes = (info.dtype for info in checkpoint.tensors.values())
    return next((dtype for dtype in dtypes if dtype is not None and dtype.is_floating_point), None)


def _judge(report: LoadReport, checkpoint: Translated, model: str, options: LoadOptions) -> None:
    """Raise for what may not differ."""
    if report.mismatched and (options.strict or not options.ignore_mismatched_sizes):
        shapes = "; ".join(f"{name} is {list(there)}, not {list(here)}" for name, there, here in report.mismatched)
        raise CheckpointError(
            f"{checkpoint.path} does not have the shapes of this {model}: {shapes}. Give the config the sizes of "
            "the checkpoint (vocab_size=, num_labels=, ...), or pass ignore_mismatched_sizes=True to draw these anew"
        )
    if options.strict and (report.missing or report.unexpected):
        raise CheckpointError(
            f"strict=True, and {checkpoint.path} does not hold exactly a {model}. Missing: "
            f"{', '.join(report.missing) or 'nothing'}. Unexpected: {', '.join(report.unexpected) or 'nothing'}"
        )
