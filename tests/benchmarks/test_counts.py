"""What a layer costs, in counts: a fusion that is lost, a copy or a pass over padding that creeps in, fails here.

Costs of one layer are those of a model with one layer more. Bounds are what was counted when they were written: a
change that needs less lowers them, one that needs more has to say why.
"""

import pytest
import torch
from twins import LENGTHS, TINY, B, S, ours

from benchmarks.counting import counted, host_syncs
from bert_fast import PackedBatch, use_backend
from bert_fast.ops.attention_host import host_attention_reason
from bert_fast.ops.linear import rows_to_pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")
H, I = TINY["hidden_size"], TINY["intermediate_size"]  # noqa: E741
T = sum(LENGTHS)
SHORT = (4, 1)  # for the interpreter, which is slow
PRODUCTS = 2 * (4 * H * H + 2 * H * I)  # operations a token and layer: q, k, v, output, and the two large ones


def padded(device="cpu"):
    mask = (torch.arange(S) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": mask.to(device), "attention_mask": mask.to(device)}


def packed(device="cpu", lengths=LENGTHS):
    return PackedBatch.from_sequences([[1] * n for n in lengths]).to(device)


def a_layer(make_call, layers=(2, 3), warmup=2):
    """The counts of one layer among others."""
    fewer, more = (counted(make_call(count), warmup=warmup) for count in layers)
    return more - fewer


def cpu_call(layers):
    model = ours(num_hidden_layers=layers)

    def call():
        with torch.no_grad():
            model(**padded())

    return call


def kernels_call(layers, train=False):
    # three heads: the kernels want a head size that is a multiple of 8
    model = ours(num_hidden_layers=layers, num_attention_heads=3).train(train)

    def call():
        with use_backend("triton"), torch.set_grad_enabled(train):
            out = model(packed(lengths=SHORT)).last_hidden_state
            if train:
                out.sum().backward()

    return call


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_a_layer_of_cpu_inference(cpu_linear):
    if reason := host_attention_reason():
        pytest.skip(f"attention is PyTorch's ops here: {reason}")
    layer = a_layer(cpu_call)
    rows = rows_to_pack(T)
    assert layer.flops == rows * PRODUCTS, "a product more, or over rows that hold no token"
    products, norms = layer.ops.pop("mkldnn::_linear_pointwise"), layer.ops.pop("aten::layer_norm")
    assert products <= 4, "query, key and value are one product, bias, GELU and residual their products' own"
    assert norms <= 2
    assert sum(layer.ops.values()) <= 1, f"ops that a layer did not need before: {layer.ops}"
    assert layer.allocations <= 11
    # in float32: q, k, v and their attention, two sums, two normed, the wide one; each norm's mean and deviation
    assert layer.allocated <= 4 * rows * (8 * H + I + 4)
    assert layer.waits <= 1


@pytest.mark.parametrize("cpu_linear", ["torch"], indirect=True)
def test_a_lost_fusion_is_noticed(cpu_linear):
    """The guard itself: without packed weights GELU, bias and residual are ops of their own, and counted."""
    layer = a_layer(cpu_call)
    del layer.ops["aten::layer_norm"]
    assert sum(layer.ops.values()) > 1 + 4


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_cpu_inference_reads_few_numbers_out_of_tensors_whatever_the_batch(cpu_linear):
    """Each is a wait on other devices; their number must not grow with the sequences."""
    model = ours()

    def waits(count):
        batch = PackedBatch.from_sequences([[1] * 5] * count)

        def call():
            with torch.no_grad():
                model(batch)

        return counted(call).waits

    assert waits(2) == waits(9)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_products_of_a_layer_on_the_kernels_path(train):
    pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
    layer = a_layer(lambda layers: kernels_call(layers, train), (1, 2), warmup=1)
    assert layer.flops == sum(SHORT) * PRODUCTS * (3 if train else 1)
    assert layer.waits == 0


@pytest.mark.gpu
def test_launches_of_a_layer_on_a_gpu():
    """Four products, attention, GELU, two LayerNorms; a product that cuBLAS splits adds a kernel that sums."""

    def make_call(layers):
        # a size at which products are worth no splitting, and kernels take every width
        shape = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
        model = ours(num_hidden_layers=layers, **shape).to("cuda", torch.bfloat16)
        batch = packed("cuda")

        def call():
            with torch.no_grad():
                model(batch)

        return call

    layer = a_layer(make_call)
    assert 0 < layer.launches <= 8 + 4
    assert host_syncs(make_call(2)) == 0


def test_padding_costs_no_product():
    """Twice the padding, the same tokens: not an operation more."""
    model = ours()
    wide = torch.nn.functional.pad(padded()["attention_mask"], (0, S))

    def call(mask):
        def run():
            with torch.no_grad():
                model(input_ids=mask, attention_mask=mask)

        return run

    narrow, wider = (counted(call(mask)).flops for mask in (padded()["attention_mask"], wide))
    assert B * S > T
    assert narrow == wider > 0
