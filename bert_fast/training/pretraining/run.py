"""A pre-training run, from documents and a tokenizer to a model's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from bert_fast.config import BertConfig
from bert_fast.models import BertForMaskedLM, BertForPreTraining
from bert_fast.tokenizer import Tokenizer
from bert_fast.training.data import BatchPlan, Corpus, PackedLoader, PretrainingData
from bert_fast.training.devices import make_accelerator
from bert_fast.training.groups import parameter_groups
from bert_fast.training.loop import FitResult, fit
from bert_fast.training.masking import IGNORED, TokenMasking
from bert_fast.training.optimizers import AdamW, Lamb
from bert_fast.training.pretraining.phases import PhasedLoader
from bert_fast.training.pretraining.settings import SIZES, PretrainSettings
from bert_fast.training.randomness import seed_all
from bert_fast.training.run_directory import RUNNING, RunDirectory
from bert_fast.training.schedules import polynomial_schedule

_NO_LENGTHS = np.empty(0, dtype=np.int64)  # a loader of data in parts gives a plan each part's
_MAY_CHANGE = {"output", "cache", "evaluate_every", *RUNNING}
_FILES = {"documents", "eval_documents", "tokenizer", "model", "checkpoint"}
_EVAL_BATCH = 32  # sequences: their logits of the whole vocabulary exist at once


def pretrain(settings: PretrainSettings, callbacks: Sequence[Callable[[Mapping[str, Any]], None]] = ()) -> FitResult:
    """Pre-train as ``settings`` say; the same call goes on where it was stopped. Every process of torchrun calls it.

    Returns:
        what :func:`bert_fast.training.fit` does; the model and tokenizer are in ``settings.output/model``.
    """
    config, directory = asdict(settings), RunDirectory(settings.output)
    directory.check()
    directory.check_same(config, free=_MAY_CHANGE, files=_FILES)
    accelerator = make_accelerator(settings.mixed_precision)
    tokenizer = Tokenizer.from_pretrained(settings.tokenizer)
    seed_all(settings.seed)
    model = new_model(settings, tokenizer)
    optimizer = new_optimizer(settings, model)
    schedule = polynomial_schedule(
        optimizer,
        settings.warmup_steps,
        settings.total_steps,
        power=settings.decay_power,
        from_start=settings.decay_from_start,
    )
    loader = phased_loader(settings, tokenizer, accelerator)
    evaluate = None if settings.eval_documents is None else held_out(settings, tokenizer, accelerator)
    result = fit(
        model,
        loader,
        optimizer,
        schedule,
        steps=settings.total_steps,
        run_dir=settings.output,
        gradient_accumulation=settings.gradient_accumulation,
        max_grad_norm=settings.max_grad_norm,
        accelerator=accelerator,
        shard=settings.shard,
        gradient_checkpointing=settings.gradient_checkpointing,
        evaluate=evaluate,
        evaluate_every=settings.evaluate_every if evaluate else None,
        save_every=settings.save_every,
        keep=settings.keep,
        log_every=settings.log_every,
        seed=settings.seed,
        config=config,
        callbacks=callbacks,
    )
    if accelerator.is_main_process:
        tokenizer.save_pretrained(Path(settings.output) / "model")
    accelerator.wait_for_everyone()
    return result


def new_model(settings: PretrainSettings, tokenizer: Tokenizer) -> nn.Module:
    """With weights drawn anew, or those of ``settings.checkpoint``.

    Raises:
        ValueError: sequences longer than the model has positions, or a vocabulary of another size.
    """
    kind = BertForPreTraining if settings.nsp else BertForMaskedLM
    dropout = settings.dropout
    changed = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if settings.checkpoint is not None:
        model = kind.from_pretrained(settings.checkpoint, **changed)
    else:
        config = _config(settings, tokenizer)
        for name, value in changed.items():
            setattr(config, name, value)
        model = kind(config)
    longest = max(phase.max_length for phase in settings.phases())
    if longest > model.config.max_position_embeddings:
        raise ValueError(
            f"max_length is {longest}, but the model has {model.config.max_position_embeddings} positions "
            "(max_position_embeddings)"
        )
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(f"the model has {model.config.vocab_size} words, fewer than the tokenizer's {len(tokenizer)}")
    return model


def _config(settings: PretrainSettings, tokenizer: Tokenizer) -> BertConfig:
    if settings.model in SIZES:
        layers, hidden = SIZES[settings.model]
        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            max_position_embeddings=max(512, *(phase.max_length for phase in settings.phases())),
            pad_token_id=tokenizer.pad_token_id,
        )
    path = Path(settings.model)
    if not path.exists():
        raise ValueError(f"model must be one of {', '.join(SIZES)} or a config.json's path, not {settings.model!r}")
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {file} is not JSON: {error}") from error
    config = BertConfig.from_dict(values)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    return config


def new_optimizer(settings: PretrainSettings, model: nn.Module) -> Optimizer:
    """LAMB or AdamW over the model's parameters; biases and LayerNorms do not decay."""
    kind = {"lamb": Lamb, "adamw": AdamW}[settings.optimizer]
    options: dict[str, Any] = {"bias_correction": settings.bias_correction}
    if settings.eps is not None:
        options["eps"] = settings.eps
    first, second = settings.betas
    groups = parameter_groups(model, settings.weight_decay)
    return kind(groups, settings.learning_rate, (first, second), **options)


def phased_loader(settings: PretrainSettings, tokenizer: Tokenizer, accelerator: Accelerator) -> PhasedLoader:
    """Batches of all phases, of documents that are tokenized once."""
    corpus = _corpus(settings, settings.documents, tokenizer, accelerator)
    phases = settings.phases()
    pieces = settings.gradient_accumulation
    loaders = []
    for number, phase in enumerate(phases):
        data = _data(settings, number, corpus, tokenizer)
        plan = BatchPlan(_NO_LENGTHS, batch_size=phase.batch_size // pieces, shuffle=True, seed=settings.seed + number)
        loaders.append(_loader(data, plan, settings, accelerator))
    return PhasedLoader(loaders, [phase.steps * pieces for phase in phases])


def held_out(settings: PretrainSettings, tokenizer: Tokenizer, accelerator: Accelerator) -> Callable[..., dict]:
    """What measures loss and accuracy on ``eval_documents``, always with the same masks."""
    corpus = _corpus(settings, settings.eval_documents or [], tokenizer, accelerator)
    data = _data(settings, 0, corpus, tokenizer)
    plan = BatchPlan(_NO_LENGTHS, batch_size=_EVAL_BATCH * accelerator.num_processes)

    def evaluate(model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
        sums = torch.zeros(6, dtype=exact, device=accelerator.device)
        for batch in _loader(data, plan, settings, accelerator):
            # a filler is computed, too: a model that is cut up among processes waits for all of them
            sums += _measured(model, batch.to(accelerator.device)) * (not batch.filler)
        loss, hits, count, next_loss, next_hits, next_count = accelerator.reduce(sums, "sum").tolist()
        found = {"eval_mlm_loss": loss / max(count, 1), "eval_mlm_accuracy": hits / max(count, 1)}
        if settings.nsp:
            pairs = {"eval_nsp_loss": next_loss, "eval_nsp_accuracy": next_hits}
            found |= {name: value / max(next_count, 1) for name, value in pairs.items()}
        return found

    return evaluate


def _measured(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    """Summed loss, right ones and number: of masked tokens, then of pairs."""
    output = model(batch["input_ids"])
    tokens = output["prediction_logits"] if "prediction_logits" in output else output["logits"]
    answers = [(tokens, batch["labels"])]
    if "next_sentence_label" in batch:
        answers.append((output["seq_relationship_logits"], batch["next_sentence_label"]))
    sums = []
    for logits, labels in answers:
        logits, labels = logits[labels != IGNORED].float(), labels[labels != IGNORED]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += [loss, (logits.argmax(-1) == labels).sum(), torch.tensor(len(labels), device=loss.device)]
    return torch.stack([x.float() for x in sums] + [torch.zeros_like(sums[0])] * (6 - len(sums)))


def _corpus(settings: PretrainSettings, files: list[str], tokenizer: Tokenizer, accelerator: Accelerator) -> Corpus:
    cache = Path(settings.output) / "corpus" if settings.cache is None else Path(settings.cache)
    with accelerator.main_process_first():
        return Corpus([Path(file) for file in files], tokenizer, cache=cache, text_field=settings.text_field)


def _data(settings: PretrainSettings, number: int, corpus: Corpus, tokenizer: Tokenizer) -> PretrainingData:
    phase = settings.phases()[number]
    masking = TokenMasking.for_tokenizer(
        tokenizer,
        whole_words=settings.whole_words,
        probability=settings.mask_probability,
        max_predictions=phase.max_predictions,
        seed=settings.seed + number,
    )
    return PretrainingData(
        corpus,
        tokenizer,
        seq_length=phase.max_length,
        nsp=settings.nsp,
        packed_windows=settings.packed_windows,
        masking=masking,
        short_probability=settings.short_probability,
        seed=settings.seed + number,
    )


def _loader(
    data: PretrainingData, plan: BatchPlan, settings: PretrainSettings, accelerator: Accelerator
) -> PackedLoader:
    return PackedLoader(
        data,
        plan,
        data.collator,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=settings.num_workers,
        pin_memory=True,
    )
