"""transformers' own door: ``attn_implementation="bert_fast"`` runs any of its encoders' attention on our op.

transformers (4.48 and newer) looks its attention functions up by name, BERT and its family do from version 5 on;
:func:`register_attention` adds ours and the mask it reads. Nothing of theirs is replaced. It is the way for an encoder
that `accelerate` does not know; one that it knows gains more there, where padding is never computed at all.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from bert_fast import backend, notices, ops
from bert_fast.ops.library import capturing, traced

NAME = "bert_fast"

# Arguments that change the probabilities in ways that the op does not compute, with what they are.
_REFUSED = {
    "softcap": "capped scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "head_mask": "a weight for each head",
}


def register_attention() -> None:
    """Make ``attn_implementation="bert_fast"`` known to transformers; calling it again changes nothing.

    Then ``AutoModel.from_pretrained(name, attn_implementation="bert_fast")`` or, on a model that is there,
    ``model.set_attn_implementation("bert_fast")``.

    Raises:
        ImportError: transformers is missing, or older than its AttentionInterface (4.48).
    """
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError as error:
        raise ImportError(
            'attn_implementation="bert_fast" needs transformers 4.48 or newer: pip install "bert_fast[hf]"'
        ) from error
    masks = _mask_interface()
    if hasattr(ALL_ATTENTION_FUNCTIONS, "register"):
        ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    else:  # a plain dict until 4.49
        ALL_ATTENTION_FUNCTIONS[NAME] = attend
    if masks is not None:
        masks.register(NAME, additive_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What a layer of transformers calls in place of its own attention.

    Args:
        module: the layer; its ``is_causal`` counts where the argument is None.
        query, key, value: ``[B, N, S, D]``.
        attention_mask: bool or additive ``[B or 1, N or 1, S or 1, S]``.
        dropout: probability for the attention probabilities.
        scaling: of the scores; ``1 / sqrt(D)`` by default.
        position_bias: additive ``[B or 1, N or 1, S, S]``.

    Returns:
        ``[B, S, N, D]`` and None for the probabilities, which are never in memory. A query that sees no key gives 0.
        What the op does not compute (causal attention, keys of other shapes) runs as "sdpa", with the reason in
        ``bert_fast.backend.decisions()`` and, once, in a warning.

    Raises:
        ValueError: an argument that neither can honour, by name.
    """
    for name, what in _REFUSED.items():
        if kwargs.get(name) is not None or (name == "sinks" and getattr(module, name, None) is not None):
            raise ValueError(f'{name} ({what}) is not supported by attn_implementation="bert_fast": use "eager"')
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    reason = _reason_for_sdpa(query, key, value, causal)
    _note(reason)
    if reason is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        extra = kwargs if position_bias is None else {**kwargs, "position_bias": position_bias}
        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **extra)
    batch, _, seqlen, _ = query.shape
    key_mask = _keys_of(attention_mask, batch, seqlen)
    bias = None if key_mask is not None else attention_mask
    if bias is not None:
        bias = _as_bias(bias, query.dtype).expand(-1, -1, seqlen, -1)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    cu_seqlens, plan = _batch(batch, seqlen, query.device)
    seed = None
    if dropout > 0 and backend.has_kernels(query.device):
        seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=query.device)
    rows = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    masks: dict[str, Any] = {"bias": bias, "key_mask": key_mask}
    out = ops.attention(*rows, cu_seqlens, seqlen, scale=scaling, p=dropout, seed=seed, plan=plan, **masks)
    return out.unflatten(0, (batch, seqlen)), None


def additive_mask(
    *,
    batch_size: int,
    kv_length: int,
    mask_function: Any,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Tensor | None:
    """The mask that transformers makes for :func:`attend`, once a forward pass: None, or additive in ``dtype``.

    Additive, because a model that computes attention by itself adds whatever mask it is given to its scores, even a
    bool one. ``[B, 1, 1, S]`` where only padding is hidden, ``[B, 1, S, S]`` otherwise.

    Args:
        batch_size, kv_length: B and S.
        mask_function: transformers' description of which query sees which key.
        attention_mask: bool ``[B, S]``, True where a token is visible.
        options: what else transformers' own mask functions take.
    """
    from transformers import masking_utils

    skips = options.get("allow_is_bidirectional_skip", False)
    plain = mask_function is getattr(masking_utils, "bidirectional_mask_function", None)
    whole = options.get("q_length") == kv_length and not options.get("kv_offset") and not options.get("q_offset")
    if plain and skips and whole and (attention_mask is None or attention_mask.shape == (batch_size, kv_length)):
        visible = None if attention_mask is None else attention_mask[:, None, None, :]
        if visible is not None and visible.device.type == "cpu" and not traced() and bool(visible.all()):
            visible = None
    else:
        given = {"batch_size": batch_size, "kv_length": kv_length, "mask_function": mask_function}
        visible = masking_utils.sdpa_mask(**given, attention_mask=attention_mask, **options)
    if visible is None:
        return None
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min)
    if visible.shape[2] == 1 and not traced() and not mask.is_inference():
        # Which keys it shows, while it is what it is now: `_keys_of` shall not wait for a GPU to read it.
        mask._bert_fast_keys = visible[:, 0, 0], mask._version
    return mask


def _keys_of(mask: Tensor | None, batch: int, seqlen: int) -> Tensor | None:
    """bool ``[T]`` of a mask that hides keys from all queries alike; None where it is not known to."""
    if mask is None or mask.dim() != 4 or mask.shape[1:3] != (1, 1):
        return None
    if mask.dtype == torch.bool:
        keys = mask[:, 0, 0]
    elif traced():
        return None
    elif mask.device.type == "cpu":
        added = mask[:, 0, 0]
        keys = added > torch.finfo(mask.dtype).min / 2
        if bool((keys & (added != 0)).any()):
            return None
    elif mask.is_inference():  # counts no versions
        return None
    else:
        keys, version = getattr(mask, "_bert_fast_keys", (None, None))
        if keys is None or version != mask._version:
            return None
    return keys.expand(batch, seqlen).flatten()


def _as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _reason_for_sdpa(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> str | None:
    if causal:
        return "the attention is causal"
    if key.shape[1] != query.shape[1]:
        return f"there are {key.shape[1]} key heads for {query.shape[1]} query heads"
    if key.shape[2] != query.shape[2]:
        return f"there are {key.shape[2]} keys for {query.shape[2]} queries"
    if not query.shape == key.shape == value.shape:
        return f"query, key and value are {list(query.shape)}, {list(key.shape)}, {list(value.shape)}"
    return None


def _note(reason: str | None) -> None:
    if torch.compiler.is_compiling():
        return
    backend.note("transformers attention", "sdpa" if reason else NAME, NAME, [reason] if reason else [])
    if reason is not None:
        notices.warn(f'attn_implementation="bert_fast" runs as "sdpa": {reason}')


def _batch(batch: int, seqlen: int, device: torch.device) -> tuple[Tensor, ops.AttentionPlan]:
    """The bounds of B rows of S places and the kernels' schedule for them, kept for the layers and batches to come."""
    if traced() or capturing(device):
        return _bounds(batch, seqlen, device)
    return _kept_bounds(batch, seqlen, device, backend.has_kernels(device))


def _bounds(batch: int, seqlen: int, device: torch.device) -> tuple[Tensor, ops.AttentionPlan]:
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=device) * seqlen
    plan = ops.attention_plan(cu_seqlens)
    # One for the CPU would hold the keys of one batch.
    return cu_seqlens, plan if isinstance(plan, Tensor) else None


@functools.lru_cache(maxsize=16)
def _kept_bounds(batch: int, seqlen: int, device: torch.device, kernels: bool) -> tuple[Tensor, ops.AttentionPlan]:
    with torch.inference_mode(False):  # or the first call's tensors could not be saved for a gradient later
        return _bounds(batch, seqlen, device)


def _mask_interface() -> Any:
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    except ImportError:  # before 4.53 models make their masks themselves, additive for a name that they do not know
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS
