"""The whole state of a model and its optimizer by parameters' names, the same for any number of processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bert_fast.training.devices import shared_out, whole


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict, whole and on the host. Collective where the model is sharded."""
    return {name: whole(value) for name, value in model.state_dict().items()}


def load_model(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what :func:`model_state` gave; a tied weight may be held under one of its names only.

    Raises:
        RuntimeError: names or shapes that are not this model's.
    """
    for name, source in (getattr(model, "_tied_weights_keys", None) or {}).items():
        if name not in state and source in state:
            state = {**state, name: state[source]}
    current = model.state_dict()
    model.load_state_dict({k: shared_out(v, current[k]) if k in current else v for k, v in state.items()})


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict with parameters by name, whole and on the host. Collective where it is sharded."""
    names = _names(model, optimizer)
    state = optimizer.state_dict()
    held = {
        names[index]: {key: whole(value) for key, value in values.items()} for index, values in state["state"].items()
    }
    named = [{**group, "params": [names[index] for index in group["params"]]} for group in state["param_groups"]]
    return {"state": held, "param_groups": named}


def load_optimizer(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what :func:`optimizer_state` gave into an optimizer of the same parameters in the same groups.

    Raises:
        ValueError: it was of other parameters.
    """
    names = _names(model, optimizer)
    saved = [name for group in state["param_groups"] for name in group["params"]]
    if saved != names:
        here = sorted(set(saved) ^ set(names)) or "another order"
        raise ValueError(f"the checkpoint's optimizer is of other parameters than this one: {here}")
    index = {name: k for k, name in enumerate(names)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = {
        index[name]: {
            key: shared_out(value, parameters[index[name]]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for name, values in state["state"].items()
    }
    groups = [{**group, "params": [index[name] for name in group["params"]]} for group in state["param_groups"]]
    optimizer.load_state_dict({"state": held, "param_groups": groups})


def _names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The optimizer's parameters' names, in the order of its state_dict."""
    known = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    missing = sum(p not in known for p in parameters)
    if missing:
        raise ValueError(f"the optimizer moves {missing} parameters that the model does not have")
    return [known[p] for p in parameters]
