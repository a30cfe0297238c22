"""Every BertFor...: the encoder with a task's head and loss, as Hugging Face defines them."""

from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_fast import ops, reference
from bert_fast.checkpoints.names import TIED
from bert_fast.config import BertConfig
from bert_fast.layers import BertOnlyMLMHead, BertOnlyNSPHead, BertPreTrainingHeads
from bert_fast.layers.invariance import by_rows
from bert_fast.layers.projection import project
from bert_fast.models.base import BertPreTrainedModel
from bert_fast.models.bert import BertModel, EncodedRows
from bert_fast.models.outputs import (
    BertForPreTrainingOutput,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from bert_fast.packing import PackedBatch

IGNORE_INDEX = -100
Output = TypeVar("Output", bound=ModelOutput)
Inputs: TypeAlias = Tensor | PackedBatch | None


class BertHeadModel(BertPreTrainedModel):
    """What the models with a head share: every forward takes BertModel's arguments and keywords, and labels."""

    bert: BertModel

    def _finish(
        self, kind: type[Output], rows: EncodedRows, return_dict: bool | None, **values: Tensor | None
    ) -> Output | tuple:
        output = kind(**values, hidden_states=rows.hidden_states, attentions=rows.attentions)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _unpacked(self, logits: Tensor, rows: EncodedRows) -> Tensor:
        return rows.layout.unpack(logits).to(self.dtype)


def _labelled(labels: Tensor | None, input_ids: Inputs, inputs_embeds: Tensor | None) -> Tensor | None:
    """The places of a padded batch that a token-level loss reads, hidden or not."""
    if labels is None or isinstance(input_ids, PackedBatch):
        return None
    given = inputs_embeds if input_ids is None else input_ids
    if given is not None and labels.shape != given.shape[:2]:
        raise ValueError(f"labels must be [batch, seqlen] = {list(given.shape[:2])}, not {list(labels.shape)}")
    return labels != IGNORE_INDEX


def _packed_labels(labels: Tensor, rows: EncodedRows) -> Tensor:
    labels, tokens = rows.layout.pack(labels), rows.rows.shape[0]
    if labels.shape != rows.rows.shape[:1]:
        raise ValueError(f"labels must have one entry per token, {tokens} here, not {list(labels.shape)}")
    return labels


def _token_loss(logits: Tensor, labels: Tensor | None, rows: EncodedRows) -> Tensor | None:
    return None if labels is None else ops.cross_entropy(logits, _packed_labels(labels, rows), IGNORE_INDEX)


def _check_return_logits(return_logits: bool, **labels: Tensor | None) -> None:
    missing = [name for name, value in labels.items() if value is None]
    if not return_logits and missing:
        raise ValueError(f"return_logits=False leaves nothing to return without {' and '.join(missing)}")


class BertForPreTraining(BertHeadModel):
    """Masked language modelling and next-sentence prediction together (Devlin et al., 2019)."""

    _tied_weights_keys = TIED

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertPreTrainingHeads(config)
        self.post_init()

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        *,
        return_logits: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BertForPreTrainingOutput | tuple:
        """``labels [B, S]`` (-100 is ignored) and ``next_sentence_label [B]`` (0: is next); the loss needs both.

        With ``return_logits=False`` there are no ``prediction_logits``: only labelled tokens reach the vocabulary, a
        part at a time, and the loss is the same to rounding.
        """
        _check_return_logits(return_logits, labels=labels, next_sentence_label=next_sentence_label)
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        rows = self.bert(*inputs, keep=_labelled(labels, input_ids, inputs_embeds), return_rows=True, **kwargs)
        loss = logits = None
        if return_logits:
            logits, next_sentence = self._predicted(rows)
            if labels is not None and next_sentence_label is not None:
                loss = _token_loss(logits, labels, rows)
        else:
            loss = self.cls.predictions.loss(rows.rows, _packed_labels(labels, rows), IGNORE_INDEX)
            next_sentence = self._next_sentence(rows)
        if loss is not None:
            loss = loss + ops.cross_entropy(next_sentence, next_sentence_label.view(-1))
        return self._finish(
            BertForPreTrainingOutput,
            rows,
            return_dict,
            loss=loss,
            prediction_logits=None if logits is None else self._unpacked(logits, rows),
            seq_relationship_logits=next_sentence.to(self.dtype),
        )

    def _predicted(self, rows: EncodedRows) -> tuple[Tensor, Tensor]:
        if not rows.layout.batch_invariant:
            return self.cls(rows.rows, rows.pooled)
        return by_rows(True, self.cls.predictions, rows.rows), self._next_sentence(rows)

    def _next_sentence(self, rows: EncodedRows) -> Tensor:
        head = self.cls.seq_relationship
        return by_rows(rows.layout.batch_invariant, lambda x: project(head, x), rows.pooled)


class BertForMaskedLM(BertHeadModel):
    """Masked language modelling."""

    _tied_weights_keys = TIED

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        return_logits: bool = True,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple:
        """``labels [B, S]`` (-100 is ignored); ``logits [B, S, V]``.

        With ``return_logits=False`` there are no logits, only the loss: only labelled tokens reach the vocabulary, a
        part at a time, and the loss is the same to rounding.
        """
        _check_return_logits(return_logits, labels=labels)
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        rows = self.bert(*inputs, keep=_labelled(labels, input_ids, inputs_embeds), return_rows=True, **kwargs)
        if not return_logits:
            loss = self.cls.predictions.loss(rows.rows, _packed_labels(labels, rows), IGNORE_INDEX)
            return self._finish(MaskedLMOutput, rows, return_dict, loss=loss)
        logits = by_rows(rows.layout.batch_invariant, self.cls, rows.rows)
        loss = _token_loss(logits, labels, rows)
        return self._finish(MaskedLMOutput, rows, return_dict, loss=loss, logits=self._unpacked(logits, rows))


class BertForNextSentencePrediction(BertHeadModel):
    """Whether the second sentence follows the first: class 0 says it does."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertOnlyNSPHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> NextSentencePredictorOutput | tuple:
        """``labels [B]``; ``logits [B, 2]``."""
        rows = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_rows=True, **kwargs
        )
        logits = by_rows(rows.layout.batch_invariant, self.cls, rows.pooled)
        loss = None if labels is None else ops.cross_entropy(logits, labels.view(-1))
        return self._finish(NextSentencePredictorOutput, rows, return_dict, loss=loss, logits=logits.to(self.dtype))


class _Classifier(BertHeadModel):
    """An encoder, a dropout and a linear classifier."""

    def __init__(self, config: BertConfig, outputs: int, pooled: bool) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=pooled)
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(p)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        self.post_init()

    def _classify(self, x: Tensor, rows: EncodedRows) -> Tensor:
        return by_rows(rows.layout.batch_invariant, lambda x: project(self.classifier, self.dropout(x)), x)


class BertForSequenceClassification(_Classifier):
    """Classification, regression or multi-label classification of a whole text."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, config.num_labels, pooled=True)

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple:
        """``logits [B, num_labels]``.

        ``labels``: by ``config.problem_type`` "regression" (mean squared error), "single_label_classification"
        (integers ``[B]``) or "multi_label_classification" (floats ``[B, num_labels]``); where that is None, one label
        means regression, integers mean a single label, anything else several.
        """
        rows = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_rows=True, **kwargs
        )
        logits = self._classify(rows.pooled, rows)
        loss = self._loss(logits, labels)
        return self._finish(SequenceClassifierOutput, rows, return_dict, loss=loss, logits=logits.to(self.dtype))

    def _loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        problem = self.config.problem_type
        if problem is None:
            integers = labels.dtype in (torch.long, torch.int)
            several = "single_label_classification" if integers else "multi_label_classification"
            problem = "regression" if self.num_labels == 1 else several
        if problem == "regression":
            return F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
        if problem == "single_label_classification":
            return ops.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        raise ValueError(
            "config.problem_type must be None, 'regression', 'single_label_classification' or "
            f"'multi_label_classification', not {problem!r}"
        )


class BertForMultipleChoice(_Classifier):
    """The best of several continuations."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, 1, pooled=True)

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        num_choices: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput | tuple:
        """Tensors ``[B, choices, S]`` (``inputs_embeds [B, choices, S, H]``), ``labels [B]``; ``logits [B, choices]``.

        A PackedBatch holds the choices of each example one after another, and ``num_choices`` says how many.
        """
        if isinstance(input_ids, PackedBatch):
            if num_choices is None or num_choices < 1 or input_ids.batch_size % num_choices:
                count = input_ids.batch_size
                raise ValueError(f"num_choices must divide the {count} sequences of the PackedBatch, not {num_choices}")
        else:
            given = inputs_embeds if input_ids is None else input_ids
            if given is None or given.dim() != (4 if input_ids is None else 3):
                raise ValueError("input_ids must be [B, choices, S], or inputs_embeds [B, choices, S, H]")
            num_choices = given.shape[1]
            input_ids = None if input_ids is None else input_ids.flatten(0, 1)
        others = (attention_mask, token_type_ids, position_ids, inputs_embeds)
        flat = (None if x is None else x.flatten(0, 1) for x in others)
        rows = self.bert(input_ids, *flat, return_rows=True, **kwargs)
        logits = self._classify(rows.pooled, rows).view(-1, num_choices)
        loss = None if labels is None else ops.cross_entropy(logits, labels.view(-1))
        return self._finish(MultipleChoiceModelOutput, rows, return_dict, loss=loss, logits=logits.to(self.dtype))


class BertForTokenClassification(_Classifier):
    """A label for every token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, config.num_labels, pooled=False)

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple:
        """``labels [B, S]`` (-100 is ignored); ``logits [B, S, num_labels]``."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        rows = self.bert(*inputs, keep=_labelled(labels, input_ids, inputs_embeds), return_rows=True, **kwargs)
        logits = self._classify(rows.rows, rows)
        loss = _token_loss(logits, labels, rows)
        return self._finish(TokenClassifierOutput, rows, return_dict, loss=loss, logits=self._unpacked(logits, rows))


class BertForQuestionAnswering(BertHeadModel):
    """The span that answers a question.

    Hugging Face's loss runs over padding too, so hidden positions are "exact" here unless "zero" is asked for; then
    they are out of the softmax, and their logits are the dtype's minimum.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Inputs = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        *,
        hidden_positions: str | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput | tuple:
        """``start_positions`` and ``end_positions [B]``; logits ``[B, S]``.

        A position outside the sequence is ignored, and so is one that "zero" hides.
        """
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            if positions is not None and positions.is_floating_point():
                raise TypeError(f"{name} must be integers, positions in the sequence, not {positions.dtype}")
        rows = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            hidden_positions=hidden_positions or self.config.hidden_positions or "exact",
            return_rows=True,
            **kwargs,
        )
        logits = by_rows(rows.layout.batch_invariant, lambda x: project(self.qa_outputs, x), rows.rows)
        if logits.shape[-1] != 2:
            raise ValueError(f"num_labels of a question-answering model must be 2, not {logits.shape[-1]}")
        padded, choosable = self._padded(logits, rows)
        loss = None
        if start_positions is not None and end_positions is not None:
            both = zip(padded.unbind(-1), (start_positions, end_positions), strict=True)
            loss = sum(self._loss(scores, choosable, positions) for scores, positions in both) / 2
        shown = logits if rows.layout.padded_shape is None else padded
        start, end = shown.to(self.dtype).unbind(-1)
        spans = {"start_logits": start.contiguous(), "end_logits": end.contiguous()}
        return self._finish(QuestionAnsweringModelOutput, rows, return_dict, loss=loss, **spans)

    def _padded(self, logits: Tensor, rows: EncodedRows) -> tuple[Tensor, Tensor | None]:
        """``[T, 2]`` -> ``[B, S, 2]``, and bool ``[B, S]``: where there is a token to choose (None: everywhere).

        Elsewhere stands the lowest number that the logits' dtype and the model's both hold.
        """
        layout, dtypes = rows.layout, (logits.dtype, self.dtype)
        lowest = max(torch.finfo(dtype).min for dtype in dtypes)
        if layout.padded_shape is None:
            places, present = reference.padded_rows(layout.cu_seqlens, layout.max_seqlen, logits.shape[0])
            return logits[places].masked_fill(~present[..., None], lowest), present
        if not layout.zero_hidden:
            return layout.unpack(logits), None
        present = layout.unpack(torch.ones_like(logits[:, 0])) != 0
        return layout.unpack(logits).masked_fill(~present[..., None], lowest), present

    @staticmethod
    def _loss(scores: Tensor, choosable: Tensor | None, positions: Tensor) -> Tensor:
        outside = scores.shape[1]
        positions = positions.view(-1).clamp(0, outside)
        if choosable is not None:
            chosen = F.pad(choosable, (0, 1)).gather(1, positions[:, None]).squeeze(1)
            positions = torch.where(chosen, positions, outside)
        return ops.cross_entropy(scores, positions, ignore_index=outside)
