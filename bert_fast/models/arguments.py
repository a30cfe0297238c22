"""Arguments that users of transformers pass and an encoder cannot honour: named in an error, never ignored."""

from typing import Any

_REASONS = {
    "head_mask": "head pruning masks are not supported",
    "encoder_hidden_states": "there is no cross-attention in an encoder",
    "encoder_attention_mask": "there is no cross-attention in an encoder",
    "past_key_values": "an encoder keeps no past keys and values",
    "cache_position": "an encoder keeps no past keys and values",
}
# Trainer passes the first; an encoder does what use_cache=False asks for.
_HARMLESS = ("num_items_in_batch", "use_cache")


def reject_unsupported(arguments: dict[str, Any]) -> None:
    """Raise for every argument of a forward pass that would otherwise be ignored.

    Raises:
        ValueError: one that transformers knows but an encoder cannot honour (None and False are accepted).
        TypeError: one that nobody knows.
    """
    for name, value in arguments.items():
        if name in _REASONS:
            if value is not None:
                raise ValueError(f"{name} is not supported: {_REASONS[name]}")
        elif name == "use_cache" and value:
            raise ValueError("use_cache=True is not supported: an encoder keeps no past keys and values")
        elif name not in _HARMLESS:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
