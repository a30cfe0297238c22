"""Lamb and AdamW over many tensors at once: gradient clipping, master weights and loss scaling in the same launches."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bert_fast.ops.lamb import adam_step
from bert_fast.reference_optim import AdamRule, AdamTensors

Bounds = tuple[float, float]


class _MomentOptimizer(torch.optim.Optimizer):
    """What Lamb and AdamW share: the state, its checkpoints, and the step."""

    # torch.amp.GradScaler then leaves unscaling, and skipping a step with inf in it, to the step.
    _step_supports_amp_scaling = True
    grad_norm: Tensor | None = None

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        max_grad_norm: float | None,
        state_dtype: torch.dtype,
        master_weights: bool,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0 or None, not {max_grad_norm}")
        if state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype must be torch.float32 or torch.bfloat16, not {state_dtype}")
        self.max_grad_norm = max_grad_norm
        self.state_dtype = state_dtype
        self.master_weights = master_weights
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError: a setting out of its range.
            TypeError: a parameter that is not of a real floating dtype.
        """
        _check({**self.defaults, **param_group})
        _refuse_unknown(param_group)
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                self.param_groups.pop()
                raise TypeError(f"{type(self).__name__} moves real floating-point parameters, not {p.dtype}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what ``closure``, called first, returns.

        Gradients are read and left as they are: neither clipping nor a loss scale is written back to them.

        Raises:
            RuntimeError: a sparse gradient; a CUDA graph is captured without ``capturable``, or before the first step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        groups = [(self._rule(group), list(self._tensors(group))) for group in self.param_groups]
        self.grad_norm = adam_step(groups, max_grad_norm=self.max_grad_norm, **scaling)
        return loss

    def _rule(self, group: dict[str, Any]) -> AdamRule:
        return AdamRule(
            group["lr"],
            tuple(group["betas"]),
            group["eps"],
            group["weight_decay"],
            bias_correction=group["bias_correction"],
            **self._beyond_adam(group),
        )

    def _beyond_adam(self, group: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _tensors(self, group: dict[str, Any]) -> Iterator[AdamTensors]:
        capturing = any(p.is_cuda for p in group["params"]) and torch.cuda.is_current_stream_capturing()
        if capturing and not group["capturable"]:
            raise RuntimeError("a step can be captured in a CUDA graph only with capturable=True")
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise RuntimeError(f"{type(self).__name__} takes dense gradients, not {p.grad.layout}")
            state = self.state[p]
            if not state:
                if capturing:
                    raise RuntimeError("take a step before the capture: a replay would make its state anew every time")
                state.update(self._new_state(p))
            whole = AdamTensors(p, p.grad, state["exp_avg"], state["exp_avg_sq"], state["step"], state.get("master"))
            if not hasattr(p, "placements") or self.max_grad_norm is not None or self._rule(group).adapt:
                yield whole
            else:
                yield from _shard(whole)

    def _new_state(self, p: Tensor) -> dict[str, Tensor]:
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        narrow = wide if wide == torch.float64 else self.state_dtype
        state = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p, dtype=narrow, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format),
        }
        if self.master_weights and p.dtype in (torch.float16, torch.bfloat16):
            state["master"] = p.detach().to(torch.float32, copy=True)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.load_state_dict``, which would round the state to the parameters' dtype.

        State of ``torch.optim.Adam``, ``AdamW`` and of another ``state_dtype`` is taken over; a master weight that is
        missing is made from its parameter.
        """
        given: dict[str, Any] = {}

        def look(_: torch.optim.Optimizer, after_other_hooks: dict[str, Any]) -> None:
            given.update(after_other_hooks)
            for group in given["param_groups"]:
                _refuse_unknown(group)

        def restore(_: torch.optim.Optimizer) -> None:
            saved = (index for group in given["param_groups"] for index in group["params"])
            own = (p for group in self.param_groups for p in group["params"])
            for index, p in zip(saved, own, strict=True):
                if index in given["state"]:
                    self.state[p] = self._restored(p, given["state"][index])

        handles = [
            self.register_load_state_dict_pre_hook(look),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _restored(self, p: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        state = self._new_state(p)
        for name in state.keys() & saved.keys():
            value = torch.as_tensor(saved[name])
            if value.shape != state[name].shape:
                wanted = list(state[name].shape)
                raise ValueError(f"{name} of the state must be {wanted}, as its parameter, not {list(value.shape)}")
            state[name].copy_(value)
        return state

    def __getstate__(self) -> dict[str, Any]:
        own = ("max_grad_norm", "state_dtype", "master_weights")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


class Lamb(_MomentOptimizer):
    """LAMB (You et al., 2020): Adam's update, scaled in each tensor by ``||weight|| / ||update||``.

    Args:
        params: parameters or groups of them, as for every optimizer of PyTorch; see
            :func:`bert_fast.training.parameter_groups`.
        lr: a number, or a tensor of one element, which ``capturable`` graphs read at every replay.
        weight_decay: decoupled, that is, added to the update (``adam_w_mode``), else to the gradient.
        bias_correction: divide the moments by ``1 - beta ** step``, as the paper does.
        max_grad_norm: clip the gradients of all groups together to this 2-norm, as ``clip_grad_norm_`` does; the norm
            before is then kept in ``grad_norm``, a tensor on the device. A norm of NaN makes all weights NaN, an
            infinite one counts finite gradients as 0. None does not clip.
        always_adapt: scale tensors without weight decay too, as the paper does. By default these (biases and
            LayerNorms) move as Adam moves them: so the implementations that BERT was trained with.
        trust_bounds: between which the ratio is clamped. Where a norm is 0 the ratio is 1.
        capturable: the step may be captured in a CUDA graph (after a first one outside).
        state_dtype: of ``exp_avg``: float32 or bfloat16. ``exp_avg_sq`` is always float32: a bfloat16 keeps 8 bits,
            so that multiplied by 0.999 it rounds back to itself, and would never forget a large gradient.
        master_weights: keep a float32 copy of every 16-bit parameter, and round the parameter from it: without, steps
            below 1/256 (bfloat16) of a weight are lost. The copy follows a parameter only through this optimizer.

    The state of a parameter is ``step``, ``exp_avg`` and ``exp_avg_sq``, as of ``torch.optim.Adam``, and ``master``.
    Parameters without a gradient are skipped. ``torch.amp.GradScaler`` works, without a wait for the device where the
    kernel runs; which path runs is ``bert_fast.backend.decisions()["lamb"]``.

    Raises:
        ValueError: a setting out of its range.
        TypeError: a parameter that is not of a real floating dtype.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        max_grad_norm: float | None = None,
        always_adapt: bool = False,
        trust_bounds: Bounds = (0.0, math.inf),
        capturable: bool = False,
        state_dtype: torch.dtype = torch.float32,
        master_weights: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "adam_w_mode": adam_w_mode,
            "always_adapt": always_adapt,
            "trust_bounds": trust_bounds,
            "capturable": capturable,
        }
        super().__init__(params, defaults, max_grad_norm, state_dtype, master_weights)

    def _beyond_adam(self, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "decoupled": group["adam_w_mode"],
            "adapt": group["always_adapt"] or group["weight_decay"] != 0,
            "trust_bounds": tuple(group["trust_bounds"]),
        }


class AdamW(_MomentOptimizer):
    """AdamW (Loshchilov and Hutter, 2019); ``bias_correction=False`` is the optimizer that BERT was trained with.

    With bias correction it takes the steps of ``torch.optim.AdamW``, to which it adds clipping, master weights and
    ``state_dtype``. Without, it is google-research/bert's ``AdamWeightDecayOptimizer`` (there ``eps=1e-6`` and
    ``max_grad_norm=1.0``): its first steps are up to three times as long, which is what the warm-up is for.

    Arguments, state and errors: as of :class:`Lamb`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        max_grad_norm: float | None = None,
        capturable: bool = False,
        state_dtype: torch.dtype = torch.float32,
        master_weights: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "capturable": capturable,
        }
        super().__init__(params, defaults, max_grad_norm, state_dtype, master_weights)


def _shard(t: AdamTensors) -> Iterator[AdamTensors]:
    """This process's part of DTensors: Adam moves every element by itself, so each process runs the kernel on its own.

    LAMB's norms, and that of a gradient to be clipped, are over all parts: those stay DTensors, whose ops exchange.
    """
    together = [x for x in (*t.written(), t.grad) if getattr(x, "placements", None) == t.param.placements]
    if len(together) < len([*t.written(), t.grad]) or any(place.is_partial() for place in t.param.placements):
        yield t
        return
    local = AdamTensors(
        t.param.to_local(),
        t.grad.to_local(),
        t.exp_avg.to_local(),
        t.exp_avg_sq.to_local(),
        t.step,
        None if t.master is None else t.master.to_local(),
    )
    if local.param.numel():  # a bias of 2 has nothing for a third process
        yield local


def _refuse_unknown(group: dict[str, Any]) -> None:
    for name in ("maximize", "amsgrad"):
        if group.get(name):
            raise ValueError(f"{name} of a parameter group must be off: it is not done here")


def _check(settings: dict[str, Any]) -> None:
    lr = settings["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one element, not of {lr.numel()}")
    if not (isinstance(lr, Tensor) and lr.is_meta) and not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr must be at least 0, not {lr}")
    betas = settings["betas"]
    if not isinstance(betas, Sequence) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers from 0 up to, not including, 1, not {betas}")
    for name in ("eps", "weight_decay"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name} must be at least 0, not {settings[name]}")
    low, high = settings.get("trust_bounds", (0.0, math.inf))
    if not 0 <= low <= high:
        raise ValueError(f"trust_bounds must be 0 <= low <= high, not {(low, high)}")
