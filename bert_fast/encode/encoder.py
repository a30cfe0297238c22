"""Encoder: texts to one vector each, packed in batches of a token budget, in the order given."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_fast.checkpoints import CheckpointError, resolve
from bert_fast.encode.recipe import Recipe, read_recipe
from bert_fast.layers.quantized import quantization_reasons
from bert_fast.ops.pooling import pool
from bert_fast.packing import PackedBatch, token_budget_batches
from bert_fast.tokenizer import UNLIMITED, Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# A window of texts is sorted by length, cut into batches and (by encode_file) written as one. Where windows end follows
# from the texts and these numbers alone, so a resumed run makes the same batches and hence the same bits.
_SLICE_TEXTS = 256
_SLICE_CHARACTERS = 1 << 20
_WINDOW_BATCHES = 16
_WINDOW_TEXTS = 1 << 14


@dataclass(frozen=True)
class Window:
    """Consecutive tokenized texts: `ids` int32 [T], `lengths` int64 [B], and how many of them were cut."""

    ids: np.ndarray
    lengths: np.ndarray
    cut: int

    def batches(self, max_tokens: int) -> Iterator[tuple[np.ndarray, PackedBatch]]:
        """(indices of the texts in this window, their packed batch), longest texts first.

        The batches are of about one size, none a small rest: each number of rows costs memory (`rows_to_pack`).
        """
        starts = np.cumsum(self.lengths) - self.lengths
        tokens = int(self.lengths.sum())
        share = -(-tokens // max(-(-tokens // max_tokens), 1))
        budget = min(share + int(self.lengths.max(initial=1)), max_tokens)
        for order in token_budget_batches(self.lengths, budget):
            rows = [self.ids[starts[i] : starts[i] + self.lengths[i]] for i in order]
            yield order, PackedBatch.from_sequences(rows)


class Encoder:
    """Makes sentence embeddings with a BERT, without padding.

        Encoder("path/to/all-MiniLM-L6-v2").encode(["a text", "another"])  # float32 [2, 384]

    Args:
        model: a folder with a checkpoint and its tokenizer (a sentence-transformers folder says more, see `Recipe`),
            a name on the hub, or a BertModel, which then needs `tokenizer`.
        tokenizer: None reads it from the folder.
        pooling: "mean", "cls" or "max"; None takes what the folder says, else "mean".
        normalize: scale vectors to length 1; None takes what the folder says, else no.
        max_length: tokens per text, special tokens included; what is beyond is dropped without a word. None takes what
            the folder says, else what the model has positions for.
        max_tokens: tokens per batch; None means 4,096 on a CPU and 65,536 on a GPU.
        prompt: put before every text; None takes the folder's default prompt, if it has one.
        dtype: "float32" (default), "bfloat16" or "float16" or the torch dtype, of weights and computation.
        device: None means the first CUDA device if there is one, else the CPU.
        quantization: "int8" for the encoder's products, on a CPU with AVX-512 VNNI: see :class:`bert_fast.BertModel`.
            None takes what the folder's config says; a BertModel given as ``model`` has its own.

    Raises ValueError (RecipeError, TokenizerError and others) naming the file or the argument.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        *,
        tokenizer: Tokenizer | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        max_tokens: int | None = None,
        prompt: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        quantization: str | None = None,
    ) -> None:
        if isinstance(model, torch.nn.Module):
            if quantization is not None:
                raise ValueError("quantization goes with a folder; for a module, from_pretrained takes it")
            if tokenizer is None:
                raise ValueError("tokenizer is needed when model is a module and not a folder")
            self.recipe = Recipe(Path("."), pooling or "mean", bool(normalize))
            self.model = model if dtype is None and device is None else model.to(device=device, dtype=_dtype(dtype))
        else:
            self.recipe = read_recipe(resolve(model), pooling)
            tokenizer = tokenizer or Tokenizer.from_pretrained(self.recipe.model_folder)
            self.model = _load(self.recipe.model_folder, _dtype(dtype) or torch.float32, _device(device), quantization)
        self.model.eval()
        self.tokenizer = tokenizer
        self.device = next(self.model.parameters()).device
        self.dtype = next(self.model.parameters()).dtype
        self.hidden_size: int = self.model.config.hidden_size
        self.pooling = pooling or self.recipe.pooling
        self.normalize = self.recipe.normalize if normalize is None else normalize
        self.prompt = self.recipe.prompt if prompt is None else prompt
        self.max_length = self._longest(max_length)
        self.max_tokens = (65536 if self.device.type == "cuda" else 4096) if max_tokens is None else max_tokens
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: at least 1")

    def _longest(self, wanted: int | None) -> int:
        positions = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        least = self.tokenizer.num_special_tokens_to_add() + 1
        if wanted is not None and not least <= wanted <= positions:
            raise ValueError(f"max_length={wanted}: from {least} to {positions}, which this model has positions for")
        return min(wanted or self.recipe.max_length or UNLIMITED, positions)

    def encode(self, texts: Sequence[str], show_progress: bool = False) -> np.ndarray:
        """Embeds texts.

        Returns float32 [len(texts), hidden]; row i belongs to texts[i]. An empty text gives the vector of [CLS][SEP].
        """
        if isinstance(texts, str):
            raise TypeError("texts is a single string: give a list of texts")
        from bert_fast.encode.progress import Progress

        out = np.empty((len(texts), self.hidden_size), dtype=np.float32)
        progress = Progress(len(texts), "rows", quiet=not show_progress)
        done = 0
        for window in self.windows(texts):
            count = len(window.lengths)
            out[done : done + count] = self.embed(window)
            done += count
            progress.update(done, count)
        progress.close()
        return out

    def windows(self, texts: Iterable[str]) -> Iterator[Window]:
        """Tokenizes texts and groups them into windows; where these end depends on nothing but the texts before."""
        texts = iter(texts)
        limit = _WINDOW_BATCHES * self.max_tokens
        while True:
            parts: list[np.ndarray] = []
            lengths: list[int] = []
            tokens = cut = 0
            while tokens < limit and len(lengths) < _WINDOW_TEXTS:
                chunk = _slice(texts)
                if not chunk:
                    break
                ids, _, lost = self.tokenizer.encode_batch(self._prepared(chunk), max_length=self.max_length)
                sizes = [len(row) for row in ids]
                parts.append(np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=sum(sizes)))
                lengths += sizes
                tokens += len(parts[-1])
                cut += lost
            if not lengths:
                return
            yield Window(np.concatenate(parts), np.asarray(lengths, dtype=np.int64), cut)

    def _prepared(self, texts: list[str]) -> list[str]:
        """Texts as the folder's recipe wants them tokenized."""
        if self.recipe.lower_case:
            texts = [text.lower() for text in texts]
        return [self.prompt + text for text in texts] if self.prompt else texts

    @torch.no_grad()
    def embed(self, window: Window) -> np.ndarray:
        """Embeds a window: float32 [B, hidden], in the order of its texts."""
        out = torch.empty(len(window.lengths), self.hidden_size, device=self.device)
        for indices, batch in window.batches(self.max_tokens):
            order = torch.from_numpy(indices)
            if self.device.type == "cuda":
                batch, order = batch.pin_memory().to(self.device, non_blocking=True), order.to(self.device)
            elif self.device.type != "cpu":
                batch, order = batch.to(self.device), order.to(self.device)
            hidden = self.model(batch).last_hidden_state
            out[order] = pool(hidden, batch.cu_seqlens, self.pooling, self.normalize).float()
        return out.cpu().numpy()

    def _in_int8(self) -> bool:
        with torch.no_grad():
            asked = self.model.config.quantization is not None and not quantization_reasons(self.device)
            return asked and any(layer is not None for layer in self.model.encoder.int8_layers())

    def describe(self) -> dict[str, Any]:
        """What decides the numbers that come out, for a record."""
        return {
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "max_tokens": self.max_tokens,
            "prompt": self.prompt,
            "lower_case": self.recipe.lower_case,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": self.model.config.quantization if self._in_int8() else None,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
        }


def _slice(texts: Iterator[str]) -> list[str]:
    """The next texts to tokenize together: up to so many, and no more once there are so many characters."""
    chunk: list[str] = []
    characters = 0
    for text in islice(texts, _SLICE_TEXTS):
        chunk.append(text)
        characters += len(text)
        if characters >= _SLICE_CHARACTERS:
            break
    return chunk


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: allowed are {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r}: {str(error).splitlines()[0]}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this PyTorch ({torch.__version__}) sees no CUDA device here")
    return found


def _load(folder: Path, dtype: torch.dtype, device: torch.device, quantization: str | None) -> torch.nn.Module:
    from bert_fast.models import BertModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights left random, which is an error here
        model, report = BertModel.from_pretrained(
            folder,
            dtype=dtype,
            device=device,
            add_pooling_layer=False,
            output_loading_info=True,
            **({} if quantization is None else {"quantization": quantization}),
        )
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise CheckpointError(
            f"{folder} lacks {len(names)} weights of a BertModel ({shown}): embeddings would be noise"
        )
    return model
