"""BertPreTrainedModel: what every model class shares beside its forward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast import derived
from bert_fast.config import BertConfig
from bert_fast.explanation import Explanation, explain
from bert_fast.layers import BertLMPredictionHead
from bert_fast.models.pretrained import PreTrainedMixin
from bert_fast.models.resize import resized_bias, resized_embedding


class BertPreTrainedModel(PreTrainedMixin, nn.Module):
    """Base of all models: construction, initialisation, embeddings, checkpointing, and the care of derived weights."""

    config_class = BertConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BertEmbeddings", "BertLayer"]
    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        if not isinstance(config, BertConfig):
            raise TypeError(f"config must be a bert_fast.BertConfig, not {type(config).__name__}")
        for name in ("is_decoder", "add_cross_attention"):
            if getattr(config, name):
                raise ValueError(f"{name}=True is not supported: bert_fast models are encoders")
        self.config = config

    def post_init(self) -> None:
        """Initialise the weights and tie those that are shared; every constructor ends with it."""
        self.init_weights()

    def init_weights(self) -> None:
        """BERT's initialisation of every submodule (Devlin et al., 2019), then tied weights."""
        self.apply(self._init_weights)
        self.tie_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()

    # Embeddings

    @property
    def base_model(self) -> nn.Module:
        """The encoder inside a model with a head; the model itself if it is the encoder."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.base_model.embeddings.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The masked-LM decoder; None where there is none."""
        head = self._lm_head()
        return None if head is None else head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the masked-LM decoder."""
        head = self._lm_head()
        if head is None:
            raise ValueError(f"{type(self).__name__} has no output embeddings to set")
        head.decoder = value
        head.bias = value.bias

    def _lm_head(self) -> BertLMPredictionHead | None:
        return next((m for m in self.modules() if isinstance(m, BertLMPredictionHead)), None)

    def tie_weights(self) -> None:
        """Make the decoder's weight the word embedding's (where the config says so) and its bias the head's."""
        head = self._lm_head()
        if head is None:
            return
        if self.config.tie_word_embeddings:
            head.decoder.weight = self.get_input_embeddings().weight
        head.bias = head.decoder.bias

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Give the vocabulary ``new_num_tokens`` rows; old rows keep their values, decoder and config follow.

        Args:
            new_num_tokens: rows wanted; None keeps the number (but for the padding below).
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: new rows are the mean of the old ones, else drawn as BERT initialises.

        Returns:
            the word embedding.

        Raises:
            ValueError: a number below 1.
        """
        old = self.get_input_embeddings()
        count = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if count < 1 or (pad_to_multiple_of is not None and pad_to_multiple_of < 1):
            raise ValueError(
                f"new_num_tokens and pad_to_multiple_of must be at least 1, not {new_num_tokens}, {pad_to_multiple_of}"
            )
        if pad_to_multiple_of is not None:
            count = -(-count // pad_to_multiple_of) * pad_to_multiple_of
        if count == old.num_embeddings:
            return old
        std = None if mean_resizing else self.config.initializer_range
        decoder = self.get_output_embeddings()
        self.set_input_embeddings(resized_embedding(old, count, std))
        if decoder is not None:
            weight = resized_embedding(decoder, count, std).weight
            fresh = nn.Linear(decoder.in_features, count, device="meta")
            fresh.weight, fresh.bias = weight, resized_bias(decoder.bias, count)
            self.set_output_embeddings(fresh)
        self.config.vocab_size = count
        self.tie_weights()
        self.refresh()
        return self.get_input_embeddings()

    # Memory

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute each layer in the backward pass; only the non-reentrant kind exists here.

        Raises:
            ValueError: ``use_reentrant=True`` or another argument was asked for.
        """
        asked = dict(gradient_checkpointing_kwargs or {})
        if asked.pop("use_reentrant", False) or asked:
            raise ValueError(
                f"gradient_checkpointing_kwargs may only hold use_reentrant=False, not {gradient_checkpointing_kwargs}"
            )
        self.base_model.encoder.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Store activations again."""
        self.base_model.encoder.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return self.base_model.encoder.gradient_checkpointing

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, which adapters on frozen weights need."""
        self._require_grads_hook = self.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: output.requires_grad_(True)
        )

    def disable_input_require_grads(self) -> None:
        """Undo :meth:`enable_input_require_grads`."""
        self._require_grads_hook.remove()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters, tied ones counted once."""
        skipped = set()
        if exclude_embeddings:
            skipped = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        return sum(
            p.numel() for p in self.parameters() if id(p) not in skipped and (p.requires_grad or not only_trainable)
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' floating dtype."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    def _replicate_for_data_parallel(self) -> "BertPreTrainedModel":
        raise RuntimeError(
            "torch.nn.DataParallel is not supported: use torch.nn.parallel.DistributedDataParallel, one process per GPU"
        )

    # What runs

    def explain(self, **inputs: Any) -> Explanation:
        """What each op of a forward pass runs on, and why not on something faster: :func:`bert_fast.explain`."""
        return explain(self, **inputs)

    # Derived weights

    def refresh(self) -> None:
        """Forget weights in derived forms (packed, fused): call it after writing to parameters through ``.data``."""
        derived.drop(self)

    def train(self, mode: bool = True) -> "BertPreTrainedModel":
        """As ``nn.Module.train``; derived weights are made anew afterwards."""
        self.refresh()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BertPreTrainedModel":
        self.refresh()
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module.load_state_dict``; derived weights are made anew afterwards."""
        self.refresh()
        return super().load_state_dict(*args, **kwargs)
