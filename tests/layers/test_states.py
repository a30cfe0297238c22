"""Hidden states: the padded tensors, the rows that go on, and what either costs."""

import pytest
import torch

from bert_fast import ops
from bert_fast.layers.states import HiddenStates
from bert_fast.packing import Layout, PackedBatch, layout_of_mask, layout_of_packed

VISIBLE = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
KEEP = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
LAYOUTS = {
    "zero": lambda: layout_of_mask(VISIBLE),
    "kept": lambda: layout_of_mask(VISIBLE, keep=KEEP),
    "exact": lambda: layout_of_mask(VISIBLE, exact=True),
    "no padding": lambda: layout_of_mask(torch.ones(3, 4, dtype=torch.bool)),
    "no tokens": lambda: layout_of_mask(torch.zeros(3, 4, dtype=torch.bool)),
    "packed": lambda: layout_of_packed(PackedBatch.from_sequences([[1, 2, 3], [4]])),
}


def rows_of(layout: Layout) -> torch.Tensor:
    count = int(layout.cu_seqlens[-1])
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_go_on_as_they_were_and_the_gradient_passes_the_state(kind):
    layout = LAYOUTS[kind]()
    x = rows_of(layout).requires_grad_()
    states = HiddenStates(layout)
    rows = states.keep(x)
    (state,) = states.states
    assert torch.equal(rows, x)
    assert torch.equal(state, layout.unpack(x))
    weight = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen, whole = torch.autograd.grad((rows * weight).sum(), (state, x))
    assert torch.equal(seen, layout.unpack(weight))
    assert torch.equal(whole, weight)
    assert torch.autograd.gradcheck(lambda x: HiddenStates(layout).keep(x) ** 2, x)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("grad", [True, False], ids=["frozen", "no_grad"])
def test_without_gradients_nothing_is_taken_out_again(kind, grad, monkeypatch):
    layout = LAYOUTS[kind]()
    x, states = rows_of(layout).requires_grad_(not grad), HiddenStates(layout)
    monkeypatch.setattr(Layout, "pack", lambda *_: pytest.fail("packed"))
    with torch.set_grad_enabled(grad):
        assert states.keep(x) is x


@pytest.mark.parametrize("kind", ["exact", "no padding", "packed"])
def test_where_no_place_is_left_out_nothing_is_copied(kind):
    layout = LAYOUTS[kind]()
    states = HiddenStates(layout)
    x = rows_of(layout).requires_grad_()
    assert states.keep(x).data_ptr() == states.states[0].data_ptr() == x.data_ptr()


def test_where_places_are_left_out_a_state_costs_a_gather_beside_the_scatter_that_makes_it(monkeypatch):
    seen = []

    def hear(name):
        function = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *args: seen.append(name) or function(*args))

    hear("pad_rows")
    hear("unpad_rows")
    layout = LAYOUTS["zero"]()
    states = HiddenStates(layout)
    rows = states.keep(rows_of(layout))
    assert seen == ["pad_rows"]
    states.keep(rows.requires_grad_())
    assert seen == ["pad_rows", "pad_rows", "unpad_rows"]


def test_states_in_another_dtype():
    layout = LAYOUTS["zero"]()
    states = HiddenStates(layout, torch.float32)
    with torch.no_grad():
        assert states.keep(rows_of(layout)).dtype == torch.float64
    assert states.states[0].dtype == torch.float32
