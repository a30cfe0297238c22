"""Live: what stands in for the forward of an encoder that runs on our layers, or on its own code where they cannot."""

import inspect
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast import derived
from bert_fast.integrations import calls, tree
from bert_fast.integrations.adapter import Adapter, Call, Parts, Unsupported, encoder_class
from bert_fast.integrations.attributes import InPlaceOfForward
from bert_fast.integrations.reading import Verdict, owner_calls
from bert_fast.integrations.record import Record
from bert_fast.integrations.table import adapter_of
from bert_fast.layers.invariance import by_rows, invariant
from bert_fast.layers.projection import compute_dtype
from bert_fast.layers.quantized import quantized
from bert_fast.layers.states import HiddenStates
from bert_fast.models.masks import layout_from_mask
from bert_fast.packing import Layout, layout_of_dense

_building = threading.Lock()


class Live(InPlaceOfForward):
    """An encoder's ``forward``, kept as an attribute of the instance: class, Parameters and config stay what they are.

    What it derived from the module is made anew where that is unpickled or copied.

    Attributes:
        module: the encoder.
        positions: what is done with places that the mask hides, and why.
        asked: whether the user chose that.
        batch_invariant: whether a sequence's bits must not depend on its batch; what cannot hold that raises.
        quantization: "int8" for products in it, where they can be; or None.
        record: what calls did so far.
    """

    def __init__(
        self,
        module: Any,
        positions: Verdict,
        asked: bool,
        batch_invariant: bool = False,
        quantization: str | None = None,
    ) -> None:
        super().__init__(module)
        self.positions, self.asked = positions, asked
        self.batch_invariant, self.quantization = batch_invariant, quantization
        self._begin()

    def _begin(self) -> None:
        self.record = Record()
        # Our modules, and those of theirs that they were built around: one attribute, so that threads see both or none.
        self._built: tuple[Parts | None, tuple[nn.Module, ...]] = (None, ())
        kind = type(self.module)
        parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
        free = inspect.Parameter.VAR_KEYWORD
        self._names = tuple(p.name for p in parameters if p.kind is not free)
        self._free = any(p.kind is free for p in parameters)
        self._home = encoder_class(kind).__module__
        adapter = adapter_of(kind)
        assert adapter is not None
        self.adapter: Adapter = adapter

    def __getstate__(self) -> dict[str, Any]:
        names = ("module", "positions", "asked", "batch_invariant", "quantization")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.removed:
            return self.original(*args, **kwargs)
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        reason = self._against(args, kwargs, given)
        if reason is None:
            try:
                if not self.batch_invariant:
                    return self._run(self.parts(), given)
                with torch._C.DisableTorchFunction():  # what fixes the order around it is not to hear it
                    return self._run(self.parts(), given)
            except Unsupported as unsupported:
                reason = str(unsupported)
        if self.batch_invariant:
            kind = type(self.module).__name__
            raise RuntimeError(f"batch_invariant=True cannot hold here: {kind} runs its own code: {reason}")
        if not torch.compiler.is_compiling():
            self.record.own_code(type(self.module).__name__, reason)
        return self.original(*args, **kwargs)

    @property
    def reasons(self) -> Counter[str]:
        """How many calls ran the module's own code, by reason."""
        return self.record.reasons

    @property
    def accelerated(self) -> int:
        """How many did not."""
        return self.record.accelerated

    def _against(self, args: tuple, kwargs: dict[str, Any], given: dict[str, Any]) -> str | None:
        if len(args) > len(self._names) or any(name in kwargs for name in self._names[: len(args)]):
            return "forward takes no such arguments"
        if self._flag(given, "output_attentions"):
            return "output_attentions are asked for"
        if not isinstance(self._flag(given, "output_hidden_states"), (bool, NoneType)):
            return "some of the hidden states are asked for"
        tensors = self.adapter.tensors
        reason = (
            calls.against_state()
            or calls.against_arguments(given, tensors, self._names, self._free)
            or calls.against_tensors(given, tensors)
        )
        if reason is not None:
            return reason
        x = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
        return self.adapter.against_mask(self.module, given.get("attention_mask"), tuple(x.shape[:2]))

    def _flag(self, given: dict[str, Any], name: str) -> Any:
        value = given.get(name)
        return getattr(self.module.config, name, False) if value is None else value

    def parts(self) -> Parts:
        """Our modules around the leaves as they are now, in the training mode that theirs have.

        Raises:
            Unsupported: a hook, a replaced module or a setting that the packed encoder cannot carry.
        """
        seen = tree.read(self.module, self.adapter.called)
        parts, around = self._built
        if parts is None or not tree.unchanged(seen, around):
            if torch.compiler.is_compiling():
                raise Unsupported("its modules changed since it was accelerated: call it once before compiling it")
            with _building:
                parts = self.adapter.build(self.module)
                self._built = parts, seen
        self.adapter.check(self.module)
        recompute = False
        for ours, theirs in parts.twins:
            recompute = recompute or getattr(theirs, "gradient_checkpointing", False)
            if ours.training != theirs.training:
                ours.training = theirs.training
        if parts.encoder.gradient_checkpointing != recompute:
            parts.encoder.gradient_checkpointing = recompute
        return parts

    def _run(self, parts: Parts, given: dict[str, Any]) -> Any:
        module, adapter = self.module, self.adapter
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is not None and "return_dict" in self._names and not torch.compiler.is_compiling():
            module.warn_if_padding_and_no_attention_mask(ids, mask)  # as transformers 4 does
        x = given["inputs_embeds"] if ids is None else ids
        call = Call(module, given, (x.shape[0], x.shape[1]), x.device)
        asked = bool(self._flag(given, "output_hidden_states"))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            derived.drop(parts.encoder)
        layout = self._layout(mask, call, asked)
        # The first place is computed because heads read it out of the padded result: it must not come back as zeros.
        layout = replace(layout, zero_hidden=False).with_seed(module.training)
        if self.batch_invariant:
            self._check_places(given)
            layout = invariant(layout)
        if self.quantization is not None:
            layout = quantized(layout, self.quantization, x.device, module.training)
        call.layout = layout
        x = adapter.embed(parts, call, layout.seed)
        dtype = x.dtype
        x = x.to(compute_dtype(dtype, x.device, layout.quantization))
        states = HiddenStates(layout, dtype) if asked else None
        x = parts.encoder(x, adapter.layout(parts, call, layout).prepared_for(x), hidden_states=states)
        last = layout.unpack(adapter.finish(parts, call, x)).to(dtype)
        pooler = adapter.pooler(module)
        pooled = None if pooler is None else self._pooled(pooler, last)
        hidden = None if states is None else (*states.states, last)
        if not torch.compiler.is_compiling():
            self.record.packed(layout)
        output = adapter.output(last, pooled, hidden)
        named = "return_dict" in self._names  # so it was in transformers 4
        if given.get("return_dict") is None:
            # As use_return_dict of transformers 4 has it, which version 5 answers with a warning that stops a compiler.
            scripted = named and getattr(module.config, "torchscript", False)
            given["return_dict"] = getattr(module.config, "return_dict", True) and not scripted
        if given["return_dict"] is not False:
            return output
        if named and adapter.has_pooler:  # which kept the place of a pooler that is not there
            return (last, pooled) if hidden is None else (last, pooled, hidden)
        return output.to_tuple()

    def _pooled(self, pooler: Callable[[Tensor], Tensor], last: Tensor) -> Tensor:
        if not self.batch_invariant:
            return pooler(last)
        if isinstance(pooler, nn.Module):
            hooked = any(m._forward_hooks or m._forward_pre_hooks for m in pooler.modules())
            if hooked or type(pooler).__module__ != self._home:
                raise RuntimeError("batch_invariant=True cannot hold here: the pooler has hooks or is another's")
        return by_rows(True, pooler, last[:, :1])

    def _check_places(self, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        counted = self.adapter.counts_tokens and given.get("input_ids") is not None
        if counted or given.get("position_ids") is not None or mask is None or mask.dim() != 2:
            return
        if bool(((mask[:, 0] == 0) & (mask != 0).any(1)).any()):
            raise RuntimeError(
                "batch_invariant=True cannot hold here: positions are counted from the padding on the left: give "
                "position_ids, or pad on the right"
            )

    def replicate(self) -> nn.Module:
        """See :class:`InPlaceOfForward`; what has to be the same in any batch is not dealt out to devices."""
        if self.batch_invariant:
            raise RuntimeError("batch_invariant=True cannot hold here: DataParallel's replicas run their own code")
        return super().replicate()

    def _layout(self, mask: Tensor | None, call: Call, states_asked: bool) -> Layout:
        adapter, (batch, seqlen) = self.adapter, call.shape
        if mask is not None and mask.dim() == 4:
            # Not as layout_from_mask reads it: a float mask is added as it is, and hides no more than it does there.
            return layout_of_dense(batch, seqlen, call.device, calls.additive(mask, seqlen))
        return layout_from_mask(
            mask,
            batch,
            seqlen,
            call.device,
            heads=adapter.heads(self.module),
            keep_first=not self.batch_invariant or adapter.pooler(self.module) is not None,
            keep=None,
            exact=self._exact(states_asked, adapter.pooler(self.module)),
            dense=False,
        )

    def _exact(self, states_asked: bool, pooler: Callable[[Tensor], Tensor] | None) -> bool:
        if self.positions.hidden_positions == "exact" or self.asked:
            return self.positions.hidden_positions == "exact"
        # What is no module is an adapter's way to hand the first place to one.
        foreign = isinstance(pooler, nn.Module) and type(pooler).__module__ != self._home
        return states_asked or foreign or bool(self.module._forward_hooks) or not owner_calls()

    def forget(self) -> None:
        """Drop our modules and what was derived for them."""
        parts, self._built = self._built[0], (None, ())
        if parts is not None:
            derived.drop(parts.encoder)
            derived.drop(parts.embeddings)
