"""BertEmbeddings: words, positions and types, added and normalised."""

import torch
from torch import Tensor, nn

from bert_fast import derived, ops
from bert_fast.config import BertConfig

_DROPOUT_SITE = -1  # no layer's: theirs count up from 0


class BertEmbeddings(nn.Module):
    """The embedding layer (Devlin et al., 2019; Hugging Face's ``BertEmbeddings``) over packed rows.

    In other architectures' hands ``position_embeddings`` or ``token_type_embeddings`` may be None.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Ids int64 ``[T]``, or ``inputs_embeds [T, H]`` in place of ``input_ids`` -> ``[T, H]``.

        ``seed``: of the kernels' dropout, one per forward.
        """
        norm, dropout = self.LayerNorm, self.dropout
        positions, types = self.position_embeddings, self.token_type_embeddings
        fusible = derived.plain_norm(norm) and all(map(_plain_table, (self.word_embeddings, positions, types)))
        fusible = fusible and positions.padding_idx is types.padding_idx is None
        if inputs_embeds is None and input_ids is not None and fusible:
            drops = derived.plain(dropout, nn.Dropout)
            y = ops.embedding_layer_norm(
                input_ids,
                token_type_ids,
                position_ids,
                self.word_embeddings.weight,
                positions.weight,
                types.weight,
                norm.weight,
                norm.bias,
                norm.eps,
                padding_idx=self.word_embeddings.padding_idx,
                p=dropout.p if drops and dropout.training else 0.0,
                seed=seed,
                site=_DROPOUT_SITE,
            )
            if drops:
                return y
        else:
            y = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
            if types is not None:
                y = y + types(torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids)
            if positions is not None:
                y = y + positions(position_ids)
            y = norm(y)
        return dropout(y)


def _plain_table(module: nn.Module | None) -> bool:
    """Whether calling ``module`` is no more than reading rows of its weight."""
    return (
        module is not None
        and derived.plain(module, nn.Embedding)
        and not (module.max_norm is not None or module.sparse or module.scale_grad_by_freq)
    )
