"""The encoder: BERT's layers, one after another, over packed rows."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bert_fast import backend, derived
from bert_fast.config import BertConfig
from bert_fast.layers import blocks
from bert_fast.layers.activations import GELU, activation_function
from bert_fast.layers.attention import BertAttention, BertSelfAttention, BertSelfOutput
from bert_fast.layers.invariance import check_invariance, rows_in_blocks
from bert_fast.layers.prepared import PreparedLayer
from bert_fast.layers.projection import byte_products, compute_dtype, packed, packs, project
from bert_fast.layers.quantized import QuantizedLayer, tell
from bert_fast.layers.residual import ResidualOutput
from bert_fast.layers.states import HiddenStates
from bert_fast.ops.linear import PART_ROWS, rows_to_pack
from bert_fast.packing import Layout

_NOT_INT8 = "it is for plain post-norm layers with GELU, without hooks, adapters that are not merged or other modules"


class BertIntermediate(nn.Module):
    """The first half of the feed-forward block: a projection and its activation."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.hidden_act = config.hidden_act
        activation_function(self.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, H]`` -> ``[T, I]``."""
        return project(self.dense, x, self.hidden_act)


class BertOutput(ResidualOutput):
    """The second half: the projection back, residual and LayerNorm."""

    def __init__(self, config: BertConfig, dropout_site: int) -> None:
        super().__init__(config.intermediate_size, config, dropout_site)


class BertLayer(nn.Module):
    """One layer: attention and feed-forward, each with its residual and LayerNorm behind it.

    ``index``: its place in the encoder, which tells its dropout masks from the other layers'.
    """

    def __init__(self, config: BertConfig, index: int = 0) -> None:
        super().__init__()
        self.attention = BertAttention(config, 3 * index)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, 3 * index + 2)

    def forward(self, x: Tensor, layout: Layout, probabilities: list[Tensor] | None = None) -> Tensor:
        """``[T, H]`` -> ``[T, H]``."""
        x = self.attention(x, layout, probabilities)
        if blocks.wanted(x):
            y = self._feed_forward_block(x, layout.seed)
            if y is not None:
                return y
        return self.output(self.intermediate(x), x, layout.seed)

    def prepared(self, x: Tensor, always: bool = False) -> PreparedLayer | None:
        """This layer without its modules, for rows like ``x``; None where one of them has to be called.

        ``always``: also where plain products were asked for, or are faster.
        """
        return self._without_modules(PreparedLayer, lambda modules: packed(modules, x, always))

    def quantized(self) -> QuantizedLayer | None:
        """This layer in int8; None where one of its modules has to be called."""
        return self._without_modules(QuantizedLayer, byte_products)

    def _without_modules(self, kind: type, product: Callable[[tuple[nn.Module, ...]], Any]) -> Any:
        if not (derived.plain(self, BertLayer) and derived.plain(self.attention, BertAttention)):
            return None
        core, attended, up, output = self.attention.self, self.attention.output, self.intermediate, self.output
        kinds = ((core, BertSelfAttention), (attended, BertSelfOutput), (up, BertIntermediate), (output, BertOutput))
        if not all(derived.plain(module, its_kind) for module, its_kind in kinds) or up.hidden_act not in GELU:
            return None
        for half in (attended, output):
            if not (derived.plain_norm(half.LayerNorm) and derived.plain(half.dropout, nn.Dropout)):
                return None
            if half.dropout.training and half.dropout.p:
                return None
        linear = ((core.query, core.key, core.value), (attended.dense,), (up.dense,), (output.dense,))
        if not all(map(derived.plain_linear, itertools.chain(*linear))) or (core.training and core.dropout.p):
            return None  # before the first of the products is made
        products = [made for layers in linear if (made := product(layers)) is not None]
        if len(products) < len(linear):
            return None
        norms = (attended.LayerNorm, output.LayerNorm)
        return kind(tuple(products), norms, core.num_attention_heads, GELU[up.hidden_act])

    def _feed_forward_block(self, x: Tensor, seed: Tensor | None) -> Tensor | None:
        plain = derived.plain(self.intermediate, BertIntermediate) and derived.plain(self.output, BertOutput)
        return blocks.feed_forward(self.intermediate, self.output, x, seed) if plain else None


def _checkpointed(layer: nn.Module) -> Callable[..., Tensor]:
    """``layer``, computed again in the backward pass, by another thread on a GPU, on the backend asked for now."""
    run: Callable[..., Tensor] = layer
    if not torch.compiler.is_compiling():
        run = functools.partial(_on_backend, backend.requested(), layer)
    return functools.partial(checkpoint, run, use_reentrant=False)


def _on_backend(name: str, layer: nn.Module, *arguments: Any) -> Tensor:
    with backend.use_backend(name):
        return layer(*arguments)


class BertEncoder(nn.Module):
    """All layers. ``gradient_checkpointing`` recomputes each layer in the backward pass instead of storing it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, index) for index in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        hidden_states: HiddenStates | None = None,
        probabilities: list[Tensor] | None = None,
    ) -> Tensor:
        """``[T, H]`` -> ``[T, H]``; ``hidden_states``, if given, keep each layer's input, not the result."""
        if layout.batch_invariant:
            return self._invariant(x, layout, hidden_states, probabilities is not None)
        if layout.quantization is not None:
            in_int8 = self._in_int8(x, layout, probabilities is not None)
            if in_int8 is not None:
                return _in_parts(in_int8, x, layout, hidden_states)
            # As without: in the dtype that suits these weights.
            x = x.to(compute_dtype(next(self.parameters()).dtype, x.device))
        if probabilities is None:
            for_parts = self._for_parts(x, layout)
            if for_parts is not None:
                return _in_parts(for_parts, x, layout, hidden_states)
        layers: Iterable[Callable[..., Tensor]] = self.layer
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled() and probabilities is None:
            layers = map(_checkpointed, self.layer)
        return _run(layers, x, layout, hidden_states, probabilities)

    def _invariant(
        self, x: Tensor, layout: Layout, hidden_states: HiddenStates | None, probabilities: bool
    ) -> Tensor:
        check_invariance(x, layout, self.training, probabilities)
        layers: list[Callable[..., Tensor]] = []
        for index, layer in enumerate(self.layer):
            prepared = layer.prepared(x, always=True) if isinstance(layer, BertLayer) else None
            if prepared is None:
                raise RuntimeError(
                    f"batch_invariant=True cannot hold here: layer {index} is no plain post-norm layer with GELU "
                    f"(hooks, adapters that are not merged, quantised or replaced modules, another activation)"
                )
            layers.append(prepared)
        if x.shape[0] == 0:
            return _run([lambda x, *_: x] * len(layers), x, layout, hidden_states, None)
        return _in_parts(layers, x, layout, hidden_states)

    def int8_layers(self) -> list[QuantizedLayer | None]:
        """Each layer in int8; None for one that has a module to be called, or is of another kind."""
        return [layer.quantized() if isinstance(layer, BertLayer) else None for layer in self.layer]

    def _in_int8(self, x: Tensor, layout: Layout, probabilities: bool) -> list[Callable[..., Tensor]] | None:
        """What runs each layer on parts of a batch, in int8 where it can be; None if none of them can."""
        if x.shape[0] == 0 or backend.listened():
            return None
        own = [None] * len(self.layer) if probabilities or layout.rotary is not None else self.int8_layers()
        pairs = zip(own, self.layer, strict=True)
        layers = [layer or _prepared(called, x, layout) or called for layer, called in pairs]
        lacking = "output_attentions are asked for" if probabilities else _NOT_INT8
        if _hooked(layers):
            own, lacking = [], "a layer that has to be called has hooks, which expect one call for a batch"
        count = sum(layer is not None for layer in own)
        if count < len(self.layer):
            tell(f"quantization='int8' is for {count} of {len(self.layer)} layers here: {lacking}")
        return layers if count else None

    def _for_parts(self, x: Tensor, layout: Layout) -> list[Callable[..., Tensor]] | None:
        """What runs each layer on parts of a batch, where linear layers run packed on CPU; else None.

        Not under hooks, which expect one call for a batch.
        """
        parameter = next(self.parameters(), None)
        if parameter is None or not packs(parameter, x) or x.shape[0] == 0:
            return None
        layers = [_prepared(layer, x, layout) or layer for layer in self.layer]
        return None if _hooked(layers) else layers


def _hooked(layers: list[Callable[..., Tensor]]) -> bool:
    called = [layer for layer in layers if isinstance(layer, nn.Module)]
    return any(m._forward_hooks or m._forward_pre_hooks for layer in called for m in layer.modules())


def _prepared(layer: nn.Module, x: Tensor, layout: Layout) -> PreparedLayer | None:
    if not isinstance(layer, BertLayer) or layout.rotary is not None or backend.listened():
        return None
    return layer.prepared(x)


def _in_parts(
    layers: list[Callable[..., Tensor]], x: Tensor, layout: Layout, hidden_states: HiddenStates | None
) -> Tensor:
    """Some hundred rows after another through all layers: few numbers of rows, and rows that stay in cache."""
    results, states = [], []
    filled = rows_in_blocks if layout.batch_invariant else rows_to_pack
    for rows, surplus, part in layout.parts(PART_ROWS, filled):
        kept = None if hidden_states is None else HiddenStates(part)
        padded = F.pad(x[rows], (0, 0, 0, surplus)) if surplus else x[rows]
        count = rows.stop - rows.start
        results.append(_run(layers, padded, part, kept, None)[:count])
        states.append([state[:count] for state in kept.states] if kept else [])
    if hidden_states is not None:
        for pieces in zip(*states, strict=True):
            hidden_states.keep(_joined(pieces))
    return _joined(results)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _run(
    layers: Iterable[Callable[..., Tensor]],
    x: Tensor,
    layout: Layout,
    hidden_states: HiddenStates | None,
    probabilities: list[Tensor] | None,
) -> Tensor:
    for layer in layers:
        if hidden_states is not None:
            x = hidden_states.keep(x)
        x = layer(x, layout, probabilities)
    return x
