"""The encoders of the model sections: one set of weights, every peer prepared over it, and right before it is timed."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.contract import error_ratios
from benchmarks.settings import Settings
from benchmarks.shapes import SHAPES
from benchmarks.workloads import Batch, collate, random_ids


def base_model(settings: Settings, **changes: Any) -> torch.nn.Module:
    """transformers' ``BertModel`` in the settings' dtype on the CPU: random weights of a named size, or a folder's."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # among the tables it is noise
    name = "tiny" if settings.tiny else settings.model
    torch.manual_seed(0)
    if name in SHAPES:
        config = transformers.BertConfig(**(SHAPES[name] | changes))
        model = transformers.AutoModel.from_config(config, add_pooling_layer=False)
    else:
        model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32, add_pooling_layer=False)
    return model.to(settings.torch_dtype).eval()


# What int8 may be off. Over the random weights of "minilm" bert_fast is off by 0.007, OpenVINO by 0.017; weights of 5
# bits are past it.
INT8_ALLOWED = 0.03


@dataclass(frozen=True)
class Contender:
    """A peer that gives the right numbers."""

    name: str
    version: str
    encode: peers.Encode
    error_ratio: float


class Truth:
    """What the model gives in float64, and in its own dtype by PyTorch's plain ops, over one batch."""

    def __init__(self, model: torch.nn.Module, batch: Batch, dtype: str) -> None:
        self.batch, self._int8 = batch, dtype == "int8"
        self._visible = batch.attention_mask.bool()
        self._dtype = next(model.parameters()).dtype
        self._terms = 4 * model.config.hidden_size
        double = copy.deepcopy(model).double()
        self._truth, self._eager = (self._hidden(module) for module in (double, model))

    def _hidden(self, module: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            out = module(input_ids=self.batch.input_ids, attention_mask=self.batch.attention_mask)
        return out.last_hidden_state[self._visible]

    def error_ratio(self, out: Any) -> float:
        """The worst error of a peer's output at the visible places, as a share of what the contract allows.

        In int8, of which the contract says nothing: the root mean square error as a share of ``INT8_ALLOWED`` of the
        truth's.

        Raises:
            ValueError: the output has another shape.
            ArithmeticError: it is not finite.
        """
        found = torch.as_tensor(out).cpu()
        expected = (*self.batch.input_ids.shape, self._truth.shape[-1])
        if found.shape not in (expected, self._truth.shape):
            raise ValueError(f"the output is {list(found.shape)}, not {list(expected)} or {list(self._truth.shape)}")
        visible = found if found.shape == self._truth.shape else found[self._visible]
        if not torch.isfinite(visible).all():
            raise ArithmeticError("the output is not finite")
        if self._int8:
            error = (visible.double() - self._truth).square().mean() / self._truth.square().mean()
            return error.sqrt().item() / INT8_ALLOWED
        return max(error_ratios(visible, self._eager, self._truth, self._dtype, self._terms))


def check_batch(model: torch.nn.Module) -> Batch:
    """A ragged batch that a float64 model is quick with."""
    longest = min(64, model.config.max_position_embeddings)
    return collate(random_ids([longest, longest // 2, 3, 17, 1], model.config.vocab_size, seed=5))


def prepared(
    settings: Settings, model: torch.nn.Module, names: Sequence[str] | None = None
) -> Iterator[tuple[Contender | None, dict[str, Any]]]:
    """Every peer asked for: the contender, or None and the row that says why it is not timed."""
    batch = check_batch(model)
    truth, setup = Truth(model, batch, settings.dtype), settings.setup()
    for name in names or settings.peers:
        module = peers.peer(name)
        row: dict[str, Any] = {"peer": module.NAME}
        if reason := module.missing(setup):
            yield None, row | {"not run": reason}
            continue
        row["version"] = module.version()
        try:
            encode = module.prepare(model, setup)
            ratio = truth.error_ratio(encode(settings.to_device(batch)))
        except Exception as error:  # noqa: BLE001 - a peer that cannot run is a result
            yield None, row | {"error": "".join(traceback.format_exception(error))[-3000:]}
            continue
        row |= {"error_ratio": ratio, "right": ratio <= 1}
        if ratio > 1:
            yield None, row
            continue
        yield Contender(module.NAME, row["version"], encode, ratio), row


def ready(
    settings: Settings, model: torch.nn.Module, names: Sequence[str] | None = None
) -> tuple[list[Contender], list[dict[str, Any]]]:
    """All that can be timed, and the rows of the others.

    Raises:
        ArithmeticError: ours is wrong or did not run, so that nothing is worth timing.
    """
    found, others = [], []
    for contender, row in prepared(settings, model, names):
        if contender is not None:
            found.append(contender)
        elif row["peer"] == peers.peer("ours").NAME:
            raise ArithmeticError(f"bert_fast is not right here: {row}")
        else:
            others.append(row)
    return found, others
