"""BertModel: the encoder with its embeddings and, optionally, its pooler."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bert_fast.config import HIDDEN_POSITIONS, BertConfig
from bert_fast.layers import BertEmbeddings, BertEncoder, BertPooler
from bert_fast.layers.invariance import invariant
from bert_fast.layers.projection import compute_dtype
from bert_fast.layers.quantized import quantized
from bert_fast.layers.states import HiddenStates
from bert_fast.models.arguments import reject_unsupported
from bert_fast.models.base import BertPreTrainedModel
from bert_fast.models.masks import layout_from_mask
from bert_fast.models.outputs import BaseModelOutputWithPooling
from bert_fast.packing import Layout, PackedBatch, layout_of_packed


@dataclass
class EncodedRows:
    """What heads read: packed rows ``[T, H]`` and the layout that leads back to the padded batch."""

    rows: Tensor
    layout: Layout
    pooled: Tensor | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


pytree.register_pytree_node(
    EncodedRows,
    lambda e: ([e.rows, e.pooled, e.hidden_states, e.attentions], e.layout),
    lambda values, layout: EncodedRows(values[0], layout, *values[1:]),
)


class BertModel(BertPreTrainedModel):
    """BERT's encoder (Devlin et al., 2019), with the arguments and outputs of Hugging Face's ``BertModel``.

    Args:
        config: the hyperparameters.
        add_pooling_layer: whether ``pooler_output`` is computed.

    Padding is taken out on the way in: only tokens that the mask shows are computed. Attributes of a forward pass:

    - ``hidden_positions="zero"`` (default): hidden places come back as zeros. Whatever reads a hidden place gets it
      computed: the pooler under left padding, a label.
    - ``hidden_positions="exact"``: every place is computed and returned as Hugging Face returns it.

    With ``config.batch_invariant`` (``from_pretrained(..., batch_invariant=True)``) a sequence's outputs, those of a
    head included, have the same bits alone, in any batch and at any place in it: for inference on CPU in float32 or
    bfloat16, within one process and number of threads. What cannot hold that raises a RuntimeError: other devices,
    training, gradients, compilation, ``output_attentions``, masks of 3 or 4 dimensions, hidden places that have to be
    computed (for "exact", a label, a pooler under left padding).
    Rows run in blocks of 64: MiniLM on 2 cores takes 1.15 (float32) to 1.35 times as long for 126 to 8,730
    tokens, and twice as long for a query of 7.

    With ``config.quantization = "int8"`` (``from_pretrained(..., quantization="int8")``) the encoder's products run in
    int8, for inference on a CPU with AVX-512 VNNI: a scale for each token and for each output of a weight. The model's
    own weights stay as they are; the bytes are kept beside them. Elsewhere it runs as without, with one warning.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        hidden_positions: str | None = None,
        keep: Tensor | None = None,
        return_rows: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple | EncodedRows:
        """Encode a batch.

        Args:
            input_ids: integers ``[B, S]``, or a :class:`bert_fast.PackedBatch` in place of all tensor arguments.
            attention_mask: ``[B, S]``, nonzero where a token is visible, with holes and padding on any side; or
                ``[B, S, S]`` / ``[B or 1, N or 1, S or 1, S]``, bool or integer (nonzero is visible), or additive
                float.
            token_type_ids: integers ``[B, S]``; 0 by default.
            position_ids: integers ``[B, S]`` or ``[1, S]``; 0, 1, 2, ... by default, padding included.
            inputs_embeds: ``[B, S, H]`` in place of ``input_ids``.
            output_attentions: also return the probabilities ``[B, N, S, S]`` of every layer (computes all places).
            output_hidden_states: also return the embeddings' output and every layer's, ``[B, S, H]``. These and the
                probabilities are what the layers behind them read: gradients can be retained, or asked for, at them.
            return_dict: False returns a tuple.
            hidden_positions: "zero" or "exact" for this call; see the class.
            keep: bool ``[B, S]``, places to compute even if hidden (heads: where labels are).
            return_rows: return :class:`EncodedRows`, as heads need them.

        Returns:
            ``last_hidden_state [B, S, H]`` and ``pooler_output [B, H]``; for a PackedBatch ``[T, H]`` and ``[B, H]``.

        Raises:
            ValueError: arguments that contradict each other or that an encoder cannot honour, by name.
            IndexError: an id outside its table.
        """
        config = self.config
        reject_unsupported(kwargs)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        exact = self._exact(hidden_positions)
        if torch.jit.is_tracing():
            raise RuntimeError(
                "torch.jit.trace would freeze the lengths of this one batch: use torch.export.export or torch.compile"
            )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.refresh()

        if isinstance(input_ids, PackedBatch):
            others = (attention_mask, token_type_ids, position_ids, inputs_embeds)
            if any(x is not None for x in others) or output_attentions:
                raise ValueError("a PackedBatch takes no mask, ids or embeddings beside it, and no output_attentions")
            batch = input_ids
            ids = (batch.input_ids, batch.token_type_ids, batch.position_ids, batch.inputs_embeds)
            layout = layout_of_packed(batch)
        else:
            shape, device = self._shape(input_ids, inputs_embeds)
            layout = layout_from_mask(
                attention_mask,
                *shape,
                device,
                heads=config.num_attention_heads,
                keep_first=self.pooler is not None,
                keep=keep,
                exact=exact,
                dense=output_attentions,
            )
            ids = self._packed_ids(layout, shape, device, input_ids, token_type_ids, position_ids, inputs_embeds)

        if config.batch_invariant:
            layout = invariant(layout)
        if config.quantization is not None:
            layout = quantized(layout, config.quantization, layout.cu_seqlens.device, self.training)
        layout = layout.with_seed(self.training)
        x = self.embeddings(*ids, layout.seed)
        dtype = x.dtype
        x = x.to(compute_dtype(dtype, x.device, layout.quantization))
        states = HiddenStates(layout, dtype) if output_hidden_states else None
        attentions: list[Tensor] | None = [] if output_attentions else None
        x = self.encoder(x, layout.prepared_for(x), hidden_states=states, probabilities=attentions)
        if states is not None:
            x = states.keep(x)

        pooled = None if self.pooler is None else self.pooler(x, layout)
        hidden_states = None if states is None else tuple(states.states)
        probabilities = None if attentions is None else tuple(a.to(dtype) for a in attentions)
        if return_rows:
            return EncodedRows(x, layout, pooled, hidden_states, probabilities)
        output = BaseModelOutputWithPooling(
            last_hidden_state=layout.unpack(x).to(dtype) if hidden_states is None else hidden_states[-1],
            pooler_output=None if pooled is None else pooled.to(dtype),
            hidden_states=hidden_states,
            attentions=probabilities,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _exact(self, hidden_positions: str | None) -> bool:
        chosen = hidden_positions or self.config.hidden_positions or "zero"
        if chosen not in HIDDEN_POSITIONS:
            raise ValueError(f"hidden_positions must be one of {HIDDEN_POSITIONS}, not {chosen!r}")
        return chosen == "exact"

    def _shape(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[tuple[int, int], torch.device]:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        x = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        if x.dim() != 2:
            name, dims = ("input_ids", "[B, S]") if inputs_embeds is None else ("inputs_embeds", "[B, S, H]")
            given = x.shape if inputs_embeds is None else inputs_embeds.shape
            raise ValueError(f"{name} must be {dims}, not {list(given)}")
        return (x.shape[0], x.shape[1]), x.device

    def _packed_ids(
        self,
        layout: Layout,
        shape: tuple[int, int],
        device: torch.device,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        batch, seqlen = shape
        if position_ids is None:
            if seqlen > self.config.max_position_embeddings:
                raise ValueError(
                    f"input_ids are {seqlen} tokens long, but the model has {self.config.max_position_embeddings} "
                    f"positions (max_position_embeddings): truncate the texts"
                )
            position_ids = torch.arange(seqlen, device=device)
        named = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        for name, value in named.items():
            if value is None:
                continue
            if value.dim() == 1:
                value = value[None]
            if value.shape[0] not in (1, batch) or value.shape[1:] != (seqlen,):
                raise ValueError(f"{name} must be [{batch}, {seqlen}] or [1, {seqlen}], not {list(value.shape)}")
            named[name] = layout.pack(value.expand(batch, seqlen))
        embeds = None if inputs_embeds is None else layout.pack(inputs_embeds)
        return None if input_ids is None else layout.pack(input_ids), *named.values(), embeds
