"""What one encoder layer does to memory on the kernels' path: every op that touches a row of every token, in order.

A line is ``op: what it reads -> what it writes``, as widths of tensors ``[T, width]``; views move nothing, and tensors
of some numbers a token (statistics, lse) are left out. A line that appears here without a reason is a pass over memory
that a kernel beside it could have made on its way.
"""

import pytest
import torch
from kernel_oracle import DEVICE, randn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import config, randomize

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import PackedBatch, use_backend  # noqa: E402
from bert_fast.layers import BertLayer  # noqa: E402
from bert_fast.packing import layout_of_packed  # noqa: E402

T, H, I = 29, 48, 80  # noqa: E741
WIDTHS = {H: "H", 2 * H: "2H", 3 * H: "3H", I: "I"}
BASE = {"H": 768, "2H": 1536, "3H": 2304, "I": 3072}

FORWARD = """
addmm: H -> 3H
attention_joined: 3H -> H
mm: H -> H
dropout_add_layer_norm: H H -> H{z}
mm: H -> I
bias_gelu: I -> I
mm: I -> H
dropout_add_layer_norm: H H -> H{z}
"""
# With dropout, LayerNorm's backward writes two gradients, without it one; mm without a result of T rows makes dW.
BACKWARD = """
dropout_add_layer_norm_backward: H H -> H{dx}
mm: H I ->
mm: H -> I
bias_gelu_backward: I I -> I
mm: I H ->
addmm_: H I -> H
dropout_add_layer_norm_backward: H H -> H{dx}
mm: H H ->
mm: H -> H
attention_joined_backward: H 3H H -> 3H
sum: 2H ->
mm: 3H H ->
addmm_: H 3H -> H
"""
# Where a module must be called, autograd sums the two gradients of what a residual leaves out.
BACKWARD_OF_MODULES = """
dropout_add_layer_norm_backward: H H -> H H
mm: H I ->
mm: H -> I
bias_gelu_backward: I I -> I
mm: I H ->
mm: I -> H
add: H H -> H
dropout_add_layer_norm_backward: H H -> H H
mm: H H ->
mm: H -> H
attention_joined_backward: H 3H H -> 3H
mm: 3H -> H
mm: 3H H ->
sum: 3H ->
add: H H -> H
"""


class Trace(TorchDispatchMode):
    """Writes a line for each op that moves tensors with a row for every token."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        results = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(results) if isinstance(x, torch.Tensor)]
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        storages = {x.untyped_storage().data_ptr() for x in given}
        if not writes and made and all(x.untyped_storage().data_ptr() in storages for x in made):
            return results
        read, written = widths(given), widths(made)
        if read or written:
            self.lines.append(
                f"{func._schema.name.partition('::')[2]}: {' '.join(read)} -> {' '.join(written)}".strip()
            )
        if func.namespace == "bert_fast":
            assert all(x.stride(-1) == 1 for x in given if x.dim() > 1), f"{func} has to copy what it is given"
        return results


def widths(tensors):
    per_token = [x.numel() // T for x in tensors if T in x.shape]
    return [WIDTHS.get(width, str(width)) for width in per_token if width >= 8]


def bytes_moved(lines, tokens=65536, itemsize=2):
    """By the lines, at BERT base's widths in 16 bits."""
    names = " ".join(line.partition(": ")[2] for line in lines).replace("->", " ").split()
    return tokens * itemsize * sum(BASE[name] for name in names)


def lines_of(text, **fields):
    return text.format(**fields).strip().splitlines()


def trace(layer, *, grad=True):
    """The lines of a layer's forward, and of its backward if there is one."""
    batch = PackedBatch.from_sequences([[1] * 12, [2], [3] * 16]).to(DEVICE)
    with use_backend("triton"):
        layout = layout_of_packed(batch).with_seed(layer.training).prepared_for(x := randn(T, H))
        with torch.set_grad_enabled(grad):
            x = x.requires_grad_(grad)
            with Trace() as forward:
                y = layer(x, layout)
            if not grad:
                return forward.lines
            dy = torch.randn_like(y)
            with Trace() as backward:
                y.backward(dy)
    return forward.lines, backward.lines


def layer_of(p=0.0):
    layer = BertLayer(config(num_attention_heads=3, intermediate_size=I, hidden_dropout_prob=p))
    return randomize(layer).to(DEVICE)


def test_training_with_dropout():
    forward, backward = trace(layer_of(0.1).train())
    assert forward == lines_of(FORWARD, z=" H")
    assert backward == lines_of(BACKWARD, dx=" H")
    assert bytes_moved(forward) == 36 * 65536 * 768 * 2
    assert bytes_moved(backward) == 64 * 65536 * 768 * 2


def test_training_without_dropout():
    forward, backward = trace(layer_of().train())
    assert forward == lines_of(FORWARD, z=" H")
    assert backward == lines_of(BACKWARD, dx="")


def test_training_where_modules_must_be_called():
    """As under a hook: two sums more, and nothing else."""
    layer = layer_of(0.1).train()
    for module in (layer.attention.output, layer.output):
        module.register_forward_hook(lambda *_: None)
    forward, backward = trace(layer)
    assert forward == lines_of(FORWARD, z=" H")
    assert backward == lines_of(BACKWARD_OF_MODULES)


@pytest.mark.parametrize("mode", ["no_grad", "frozen"])
def test_inference(mode):
    """Nothing is saved. Frozen parameters forbid no derived weight, gradients do: then the weights are joined anew."""
    layer = layer_of(0.1).eval()
    if mode == "no_grad":
        assert trace(layer, grad=False) == lines_of(FORWARD, z="")
        return
    layer.requires_grad_(False)
    forward, backward = trace(layer)
    assert forward == lines_of(FORWARD, z=" H")
    assert [line for line in backward if line.endswith("->")] == [], "a gradient of a frozen weight"


def test_the_trace_sees_one_more_pass():
    """What the other tests stand on: a copy, a cast or a sum of rows is a line of its own."""
    layer = layer_of().train()
    layer.register_forward_hook(lambda module, args, y: y.clone() + args[0])
    forward, _ = trace(layer)
    assert forward == [*lines_of(FORWARD, z=" H"), "clone: H -> H", "add: H H -> H"]
