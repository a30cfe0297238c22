"""The attention kernels against float64, the reference's dropout, and what must not happen."""

import contextlib
import dataclasses
import itertools
import math

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import reference

# Lengths of the sequences of a batch, by what they exercise.
RAGGED = {
    "group-16": [5, 16, 1, 0, 9, 12, 16],
    "whole-32": [32, 17, 0, 3],
    "whole-64": [33, 64, 1],
    "whole-128": [33, 0, 100],
    "loop": [20, 0, 131],
}
SEED = 2**40 + 12345


@dataclasses.dataclass
class Problem:
    """Inputs of one call on the test's device, and its results from the kernels, eager PyTorch and float64."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    options: dict
    dout: torch.Tensor

    def kernels(self, **more):
        """(out, lse, dq, dk, dv, dbias)."""
        from bert_fast.kernels.attention import attention_backward, attention_forward

        schedule = {"schedule": more.pop("schedule", None)}
        inputs = (self.q, self.k, self.v)
        out, lse = attention_forward(*inputs, self.cu_seqlens, self.max_seqlen, **self.options, **schedule)
        need_dbias = self.options.get("bias") is not None
        gradients = attention_backward(
            self.dout, *inputs, out, lse, self.cu_seqlens, self.max_seqlen,
            **self.options, **schedule, **more, need_dbias=need_dbias,
        )  # fmt: skip
        return out, lse, *gradients

    def by_reference(self, dtype: torch.dtype):
        """(out, dq, dk, dv, dbias) of the reference in ``dtype``."""
        inputs = [x.detach().to(dtype).clone().requires_grad_() for x in (self.q, self.k, self.v)]
        options = dict(self.options)
        if options.get("bias") is not None:
            options["bias"] = options["bias"].detach().to(dtype).clone().requires_grad_()
            inputs.append(options["bias"])
        out = reference.attention(*inputs[:3], self.cu_seqlens, self.max_seqlen, **options)
        gradients = torch.autograd.grad(out, inputs, self.dout.to(dtype))
        return (out.detach(), *gradients, *([None] * (4 - len(gradients))))

    def check(self, **more):
        """The kernels hold the numeric contract on every result."""
        out, lse, *gradients = self.kernels(**more)
        eager, truth = self.by_reference(self.q.dtype), self.by_reference(torch.float64)
        assert not torch.isnan(lse).any()
        terms = max(self.q.shape[2], self.max_seqlen)
        names = ("out", "dq", "dk", "dv", "dbias")
        for name, mine, theirs, exact in zip(names, (out, *gradients), eager, truth, strict=True):
            if exact is not None:
                assert_close_to_truth(mine, theirs, exact, self.q.dtype, k=terms, name=name)


def problem(
    device, dtype, lengths, heads=2, head_dim=64, *, bias=None, key_mask=False, p=0.0, fused=True, max_seqlen=None
) -> Problem:
    """Random inputs. bias: its two leading sizes. key_mask: hides a third of the keys."""
    tokens, longest = sum(lengths), max(lengths)
    shape = (tokens, 3, heads, head_dim) if fused else (3, tokens, heads, head_dim)
    q, k, v = torch.randn(shape).to(device, dtype).unbind(1 if fused else 0)
    options = {"scale": head_dim**-0.5, "p": p, "seed": torch.tensor([SEED], device=device), "site": 7}
    if bias is not None:
        options["bias"] = torch.randn(*bias, longest + 3, longest + 3).to(device, dtype)
    if key_mask:
        options["key_mask"] = torch.rand(tokens, device=device) > 0.3
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    dout = torch.randn(tokens, heads, head_dim).to(device, dtype)
    return Problem(q, k, v, cu_seqlens, max_seqlen or longest, options, dout)


# --- numbers ---


@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED.keys())
def test_holds_the_numeric_contract(device, dtype, lengths):
    problem(device, dtype, lengths).check()


@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED.keys())
def test_dropout_is_the_references_own(device, dtype, lengths):
    problem(device, dtype, lengths, heads=1 + (max(lengths) < 64), p=0.3).check()


@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED.keys())
def test_key_mask(device, lengths):
    problem(device, torch.float16, lengths, heads=1 + (max(lengths) < 64), key_mask=True, p=0.1).check()


@pytest.mark.parametrize(
    ("plan", "shared"),
    [
        *(("group-16", shared) for shared in ("neither", "sequences", "heads", "both")),
        *itertools.product(("whole-128", "loop"), ("neither", "both")),
    ],
)
def test_bias_and_its_gradient(device, plan, shared):
    lengths = RAGGED[plan]
    sizes = (1 if shared in ("sequences", "both") else len(lengths), 1 if shared in ("heads", "both") else 2)
    problem(device, torch.float16, lengths, bias=sizes, key_mask=shared == "heads").check()


def test_bias_and_dropout_and_key_mask(device):
    problem(device, torch.float16, [20, 0, 40], bias=(1, 1), p=0.2, key_mask=True).check()
    problem(device, torch.float16, [70, 2], heads=1, bias=(2, 1), p=0.2, key_mask=True, max_seqlen=73).check()


def test_bias_in_float32(device):
    problem(device, torch.float32, [20, 0, 40], bias=(1, 2)).check()


def test_bias_of_any_strides(device):
    case = problem(device, torch.float16, [20, 9], bias=(2, 2))
    bias = case.options["bias"]
    case.options["bias"] = bias.transpose(2, 3)
    case.check()
    case.options["bias"] = bias[:1, :, :, :1].expand(1, 2, *bias.shape[2:])
    case.check()


@pytest.mark.parametrize("head_dim", [8, 16, 24, 32, 40, 80, 96, 128])
@pytest.mark.parametrize("plan", ["whole-32", "loop"])
def test_head_dims(device, plan, head_dim):
    problem(device, torch.float16, RAGGED[plan], heads=1, head_dim=head_dim).check()


def test_wide_heads_in_float32(device):
    problem(device, torch.float32, [40, 7, 70], heads=1, head_dim=128).check()


def test_max_seqlen_may_be_far_above(device):
    problem(device, torch.float16, [9, 30], max_seqlen=512).check()
    problem(device, torch.float16, [9, 30], max_seqlen=100, p=0.2).check()


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("length", [30, 100, 140])
def test_a_longer_sequence_than_max_seqlen_is_cut(device, length, p):
    """Its first rows attend to each other; the others, their bias and their dropout bits are not touched."""
    case = problem(device, torch.float16, [length + 20, 9], heads=1, bias=(1, 1), p=p, fused=False)
    case.options["bias"] = case.options["bias"][..., :length, :length].contiguous()
    case.max_seqlen = length
    long = case.kernels()
    kept = torch.cat([torch.arange(length), torch.arange(length + 20, length + 29)]).to(device)
    short = problem(device, torch.float16, [length, 9], heads=1, fused=False)
    for name in ("q", "k", "v", "dout"):
        setattr(short, name, getattr(case, name)[kept])
    short.options = {**case.options, "p": 0.0}
    assert torch.isnan(long[0][length : length + 20]).all()
    if p == 0:  # with dropout the rows' numbers decide what is kept
        for cut, whole in zip(long, short.kernels(), strict=True):
            cut = cut if cut.dim() == 4 else cut[:, kept] if cut.dim() == 2 else cut[kept]
            torch.testing.assert_close(cut, whole, rtol=0, atol=0)
    else:
        assert all(torch.isfinite(result[kept]).all() for result in (long[0], *long[2:5]))
        assert torch.isfinite(long[5]).all()


@pytest.mark.parametrize(
    ("precision", "length", "sharpness", "p"),
    [
        *itertools.product((torch.float32,), (30, 256), (3.0, 6.0), (0.0,)),
        (torch.float32, 512, 6.0, 0.0),
        (torch.float32, 200, 4.0, 0.3),
        *itertools.product((torch.float16,), (30, 256, 512), (3.0,), (0.0,)),
    ],
)
def test_saturated_softmax(device, precision, length, sharpness, p):
    """Every query loves one key: dprobs and delta cancel, and the gradient is what rounding must not add to."""
    case = problem(device, precision, [length], heads=1, p=p, fused=False)
    case.q.copy_(case.k * sharpness)
    case.check()


@pytest.mark.parametrize("length", [30, 200])
def test_rows_of_one_key(device, length):
    """16-bit, every row one-hot: in one tile the gradients vanish as eager's do, beyond they are float32's rounding."""
    case = problem(device, torch.float16, [length], heads=1, fused=False)
    case.q.copy_(case.k * 30)
    if length <= 64:
        case.check()
        return
    out, _, dq, dk, dv, _ = case.kernels()
    eager, truth = case.by_reference(torch.float16), case.by_reference(torch.float64)
    for name, mine, index in (("out", out, 0), ("dv", dv, 3)):
        assert_close_to_truth(mine, eager[index], truth[index], torch.float16, name=name)
    dprobs = (case.dout.double()[:, 0] @ case.v.double()[:, 0].T).abs().max()
    rounding = 2.0**-22 * dprobs * case.options["scale"]
    assert (dq - truth[1]).abs().max() <= rounding * case.k.abs().max()
    assert (dk - truth[2]).abs().max() <= rounding * case.q.abs().max()


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_gathered_statistics_change_no_bit(device, monkeypatch, p):
    """How GPUs with tensor memory read lse and delta, run by every other one and by the interpreter."""
    from bert_fast.kernels import attention_plan, launch

    case = problem(device, torch.float16, RAGGED["loop"], heads=1, p=p)
    want = case.kernels()
    generation = launch.architecture() // 10
    monkeypatch.setattr(attention_plan, "TENSOR_MEMORY", (generation,))
    attention_plan._plan.cache_clear()
    chosen = attention_plan.plan(131, 64, torch.float16, dropout=p > 0)
    assert chosen.backward[1].blocks["STATS_GATHERED"] == 1
    for got, wanted in zip(case.kernels()[:5], want[:5], strict=True):
        assert torch.equal(got, wanted)
    attention_plan._plan.cache_clear()


@pytest.mark.parametrize("length", [30, 200])
@pytest.mark.parametrize("kind", ["scores", "bias"])
def test_what_all_scores_share_costs_no_digits(device, length, kind):
    """float32: softmax of large scores close to each other, which are exact, is as exact as that of small ones."""
    case = problem(device, torch.float32, [length], heads=1, bias=(1, 1) if kind == "bias" else None, fused=False)
    for x in (case.q, case.k):
        x.copy_(torch.randint(-2, 3, x.shape))
    if kind == "bias":
        case.options["bias"] = (8 * case.options["bias"]).round() / 8 + 500
    else:
        case.q[..., 0] = case.k[..., 0] = 64
    case.check()


def test_lse_is_the_natural_logarithm_of_the_denominator(device):
    case = problem(device, torch.float32, [7, 0, 20], heads=1)
    _, lse, *_ = case.kernels()
    for first, end in itertools.pairwise(case.cu_seqlens.tolist()):
        scores = case.q[first:end, 0].double() @ case.k[first:end, 0].double().T * case.options["scale"]
        torch.testing.assert_close(lse[0, first:end].double(), torch.logsumexp(scores, 1), rtol=1e-6, atol=1e-6)


# --- memory layout ---


@pytest.mark.parametrize("layout", ["separate", "head-major", "odd rows", "huge rows"])
def test_strides(device, layout):
    case = problem(device, torch.float16, [20, 0, 11], heads=2, head_dim=16, fused=False)
    made = []
    for x in (case.q, case.k, case.v, case.dout):
        if layout == "separate":
            made.append(x.contiguous())
        elif layout == "head-major":
            made.append(x.transpose(0, 1).contiguous().transpose(0, 1))
        elif layout == "odd rows":
            rows = torch.zeros(x.shape[0], 35, dtype=x.dtype, device=device)
            made.append(rows[:, 2:34].unflatten(1, (2, 16)).copy_(x))
        else:  # 128 rows would pass 2**31 elements: offsets within a tile must be int64
            few = torch.zeros(2**24 * 2 + 32, dtype=x.dtype, device=device)
            made.append(few.as_strided((3, 2, 16), (2**24, 16, 1)).copy_(x[:3]))
    case.q, case.k, case.v, case.dout = made
    if layout == "huge rows":
        case.cu_seqlens = torch.tensor([0, 2, 3], dtype=torch.int32, device=device)
    case.check()


def test_gradients_into_one_buffer(device):
    case = problem(device, torch.float16, RAGGED["whole-64"])
    buffer = torch.full((case.q.shape[0], 4, *case.q.shape[1:]), 3.0, dtype=torch.float16, device=device)
    *_, dq, dk, dv, _ = case.kernels()
    found = case.kernels(dqkv=tuple(buffer[:, 1:].unbind(1)))[2:5]
    assert [x.data_ptr() for x in found] == [buffer[:, i].data_ptr() for i in (1, 2, 3)]
    torch.testing.assert_close(buffer[:, 1:], torch.stack((dq, dk, dv), 1), rtol=0, atol=0)
    assert (buffer[:, 0] == 3).all()


def test_rows_beyond_the_last_sequence_are_left_alone(device):
    case = problem(device, torch.float16, [20, 12])
    case.cu_seqlens[-1] = 26
    out, *_ = case.kernels()
    assert torch.isfinite(out[:26]).all()
    assert torch.isnan(out[26:]).all()


def test_the_plan_is_that_of_the_tensors_gpu(device, monkeypatch):
    """Of several GPUs the current one need not be the tensors'."""
    from bert_fast.kernels import attention, attention_backward, launch

    inside = []

    @contextlib.contextmanager
    def on_device(tensor):
        inside.append(tensor)
        yield
        inside.pop()

    def architecture():
        assert inside, "asked outside of on_device"
        return 0

    monkeypatch.setattr(attention, "on_device", on_device)
    monkeypatch.setattr(attention_backward, "on_device", on_device)
    monkeypatch.setattr(launch, "architecture", architecture)
    problem(device, torch.float16, [5], bias=(1, 1)).kernels()


# --- edges ---


@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], []], ids=["one empty", "three empty", "no sequence"])
def test_no_tokens(device, lengths):
    from bert_fast.kernels.attention import attention_backward, attention_forward

    q = torch.zeros(0, 2, 64, device=device)
    cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=device)
    bias = torch.ones(1, 2, 4, 4, device=device)
    out, lse = attention_forward(q, q, q, cu_seqlens, 4, scale=1.0, bias=bias)
    dq, dk, dv, dbias = attention_backward(q, q, q, q, out, lse, cu_seqlens, 4, scale=1.0, bias=bias, need_dbias=True)
    assert out.shape == dq.shape == dk.shape == dv.shape == (0, 2, 64)
    assert lse.shape == (2, 0)
    assert (dbias == 0).all()


def test_one_token(device, dtype):
    case = problem(device, dtype, [1])
    out, lse, dq, dk, dv, _ = case.kernels()
    torch.testing.assert_close(out, case.v.contiguous(), rtol=0, atol=0)
    torch.testing.assert_close(dv, case.dout, rtol=0, atol=0)
    assert dq.abs().max() < 1e-2
    assert dk.abs().max() < 1e-2


@pytest.mark.parametrize("plan", ["group-16", "whole-128", "loop"])
@pytest.mark.parametrize("how", ["key_mask", "-inf", "lowest"])
def test_rows_that_see_no_key_are_zero(device, plan, how):
    case = problem(device, torch.float16, RAGGED[plan], heads=1)
    tokens = torch.zeros(case.q.shape[0], dtype=torch.bool, device=device)
    sequence = len(RAGGED[plan]) - 1
    first, end = case.cu_seqlens[sequence].item(), case.cu_seqlens[sequence + 1].item()
    tokens[first:end] = True
    if how == "key_mask":
        case.options["key_mask"] = ~tokens
    else:
        bias = torch.zeros(len(RAGGED[plan]), 1, case.max_seqlen, case.max_seqlen, device=device).half()
        bias[sequence] = -math.inf if how == "-inf" else torch.finfo(torch.float16).min
        case.options["bias"] = bias
    out, lse, dq, dk, dv, dbias = case.kernels()
    for result in (out, dq, dk, dv):
        assert (result[tokens] == 0).all()
        assert torch.isfinite(result).all()
    assert (lse[:, tokens] == -math.inf).all()
    assert torch.isfinite(lse[:, ~tokens]).all()
    assert dbias is None or torch.isfinite(dbias).all()


@pytest.mark.parametrize("plan", ["group-16", "whole-128", "loop"])
def test_hidden_keys_never_leak(device, plan):
    case = problem(device, torch.float16, RAGGED[plan], key_mask=True, fused=False)
    clean = case.kernels()[:5]
    hidden = ~case.options["key_mask"]
    case.k[hidden], case.v[hidden] = math.nan, math.inf
    for before, after in zip(clean, case.kernels()[:5], strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("plan", ["group-16", "whole-128", "loop"])
def test_sequences_do_not_see_each_other(device, plan):
    case = problem(device, torch.float16, RAGGED[plan], heads=1, fused=False)
    clean = case.kernels()[:5]
    first = case.cu_seqlens[1].item()
    for x in (case.q, case.k, case.v, case.dout):
        x[:first] = math.nan
    for before, after in zip(clean, case.kernels()[:5], strict=True):
        rows = slice(first, None) if before.dim() == 3 else (slice(None), slice(first, None))
        torch.testing.assert_close(after[rows], before[rows], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy on what dead keys hold
def test_scores_far_below_zero(device):
    """A dead key's score is 0, which a row whose real scores are all -300 must not let in."""
    for plan in ("group-16", "whole-128", "loop"):
        case = problem(device, torch.float16, RAGGED[plan], heads=1, fused=False)
        case.q[:], case.k[:] = 12.0 + 0.01 * case.q, -3.0 + 0.01 * case.k
        case.check()


# --- dropout ---


@pytest.mark.parametrize("plan", list(RAGGED))
def test_forward_and_backward_drop_the_same(device, plan):
    """With equal scores and rows of the identity as values, out shows what the forward kept and dv the backward."""
    heads = 2 if plan == "group-16" else 1
    case = problem(device, torch.float32, RAGGED[plan], heads=heads, head_dim=128, p=0.4, fused=False)
    tokens = case.q.shape[0]
    kept = [torch.zeros(tokens, heads, case.max_seqlen, dtype=torch.bool, device=device) for _ in range(2)]
    position = torch.cat([torch.arange(n) for n in RAGGED[plan]]).to(device)
    case.q.zero_()
    for block in range(0, case.max_seqlen, 128):
        case.v.zero_()
        case.dout.zero_()
        here = ((position >= block) & (position < block + 128)).nonzero().squeeze(1)
        case.v[here, :, position[here] - block] = 1
        case.dout[here, :, position[here] - block] = 1
        out, _, _, _, dv, _ = case.kernels()
        width = min(128, case.max_seqlen - block)
        kept[0][:, :, block : block + width] = out[:, :, :width] > 0
        for first, end in itertools.pairwise(case.cu_seqlens.tolist()):
            queries = range(first + block, min(end, first + block + 128))
            for query in queries:  # dv[key, head, query] is the probability that survived
                kept[1][query, :, : end - first] = dv[first:end, :, query - first - block].T > 0
    assert torch.equal(*kept)
    row = torch.arange(tokens, device=device)[:, None, None] * heads + torch.arange(heads, device=device)[None, :, None]
    index = row * 65536 + torch.arange(case.max_seqlen, device=device)
    length = torch.tensor(RAGGED[plan], device=device).repeat_interleave(torch.tensor(RAGGED[plan], device=device))
    present = (torch.arange(case.max_seqlen, device=device) < length[:, None])[:, None].expand_as(kept[0])
    expected = reference.dropout_keep(case.options["seed"], 7, 0.4, index)
    assert torch.equal(kept[0][present], expected[present].bool())
    share, count = kept[0][present].float().mean().item(), present.sum().item()
    assert abs(share - 0.6) < 5 * math.sqrt(0.24 / count)


def test_dropout_depends_on_seed_and_site(device):
    case = problem(device, torch.float16, [40], p=0.5)
    out = case.kernels()[0]
    case.options["site"] = 8
    other_site = case.kernels()[0]
    case.options["site"], case.options["seed"] = 7, torch.tensor([SEED + 2**32], device=device)
    other_seed = case.kernels()[0]
    case.options["seed"] = torch.tensor([SEED], device=device)
    assert not torch.equal(out, other_site)
    assert not torch.equal(out, other_seed)
    assert torch.equal(out, case.kernels()[0])


def test_no_dropout_and_nothing_but_dropout(device):
    case = problem(device, torch.float16, [40, 3])
    out = case.kernels()[0]
    case.options["seed"] = None
    assert torch.equal(out, case.kernels()[0])
    case.options.update(seed=torch.tensor([SEED], device=device), p=1.0)
    out, _, dq, dk, dv, _ = case.kernels()
    for result in (out, dq, dk, dv):
        assert (result == 0).all()


# --- order of work ---


@pytest.mark.parametrize("plan", ["group-16", "whole-128", "loop"])
def test_a_schedule_changes_no_bit_and_neither_does_a_second_run(device, plan):
    from bert_fast.kernels.attention import attention_schedule

    bias = (1, 1) if plan == "group-16" else None
    case = problem(device, torch.float16, RAGGED[plan], heads=1, bias=bias, p=0.2)
    results = [case.kernels(), case.kernels(), case.kernels(schedule=attention_schedule(case.cu_seqlens))]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is b is None or torch.equal(a, b)


def test_schedule_runs_longest_first(device):
    from bert_fast.kernels.attention import attention_schedule

    cu_seqlens = torch.tensor([0, 3, 10, 10, 14], dtype=torch.int32, device=device)
    schedule = attention_schedule(cu_seqlens)
    assert schedule.dtype == torch.int32
    assert schedule.tolist() == [[0, 7, 11, 14, 14], [1, 3, 0, 2, 0]]


def test_every_tile_has_one_slot():
    """The closed form of find_tile: each sequence's tiles have slots of their own, below T // BLOCK + B."""
    generator = torch.Generator().manual_seed(0)
    for block in (16, 64, 128):
        lengths = (torch.rand(200, generator=generator) ** 3 * 600).long().tolist()
        cumulative = [0, *itertools.accumulate(lengths)]
        slots = cumulative[-1] // block + len(lengths)
        for b, length in enumerate(lengths):
            first, end = (cumulative[i] // block + i for i in (b, b + 1))
            assert end - first >= -(-length // block)
            assert end <= slots


def test_plans_by_length():
    from bert_fast.kernels.attention import plan

    for length, name, group in ((1, "group", 4), (16, "group", 4), (17, "tile", 1), (128, "tile", 1)):
        chosen = plan(length, 64, torch.bfloat16, capability=90)
        assert (chosen.name, chosen.forward.blocks["GROUP"]) == (name, group)
        assert [k.kernel for k in chosen.backward] == ["attention_backward_tile"]
    chosen = plan(129, 64, torch.bfloat16, capability=90)
    assert chosen.name == "loop"
    assert len(chosen.backward) == 2
    block = chosen.forward.blocks["BLOCK_M"]
    assert chosen.forward.programs(tokens=10 * block, batch=3, heads=2) == (10 + 3) * 2
    assert plan(16, 64, torch.bfloat16, capability=90).forward.programs(tokens=64, batch=9, heads=2) == 3 * 2


@pytest.mark.parametrize("capability", [0, 80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("head_dim", [8, 32, 64, 80, 128])
def test_every_call_has_a_plan(capability, head_dim):
    from bert_fast.kernels.attention import plan

    flags = (False, True)
    for length, kind, *given in itertools.product((1, 60, 100, 4096), (2, 4), flags, flags, flags):
        dtype = torch.bfloat16 if kind == 2 else torch.float32
        options = dict(zip(("dropout", "masked", "bias"), given, strict=True))
        chosen = plan(length, head_dim, dtype, **options, capability=capability)
        for kernel in (chosen.forward, *chosen.backward):
            assert kernel.options["num_warps"] in (1, 2, 4, 8)
            assert 0 < kernel.predicted["shared_bytes"] <= (101376 if capability in (80, 86, 89, 120) else 232448)


# --- bad input ---


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q", lambda a: a.update(q=a["q"][..., :60])),
        ("q", lambda a: a.update(q=a["q"].double())),
        ("k", lambda a: a.update(k=a["k"][:5])),
        ("k", lambda a: a.update(k=a["k"].float())),
        ("v", lambda a: a.update(v=a["v"].transpose(1, 2).contiguous().transpose(1, 2))),
        ("cu_seqlens", lambda a: a.update(cu_seqlens=a["cu_seqlens"].long())),
        ("scale", lambda a: a.update(scale=-1.0)),
        ("bias", lambda a: a.update(bias=torch.zeros(3, 2, 9, 9))),
        ("bias", lambda a: a.update(bias=torch.zeros(1, 2, 8, 8))),
        ("key_mask", lambda a: a.update(key_mask=torch.ones(12))),
        ("seed", lambda a: a.update(p=0.1)),
        ("p", lambda a: a.update(p=1.5, seed=torch.tensor([1]))),
        ("schedule", lambda a: a.update(schedule=torch.zeros(2, 9, dtype=torch.int32))),
        ("schedule", lambda a: a.update(schedule=torch.zeros(3, 2, dtype=torch.int32).T)),
        ("cu_seqlens", lambda a: a.update(cu_seqlens=torch.zeros(0, dtype=torch.int32))),
        ("scale", lambda a: a.update(scale=math.nan)),
        ("seed", lambda a: a.update(p=0.1, seed=torch.zeros(1, dtype=torch.int64, device="meta"))),
        ("max_seqlen", lambda a: a.update(p=0.1, seed=torch.tensor([1]), max_seqlen=65537)),
    ],
)
def test_bad_input_is_named(name, change):
    from bert_fast.kernels.attention import attention_forward

    q = torch.zeros(12, 2, 64, dtype=torch.float16)
    arguments = {
        "q": q, "k": q, "v": q, "cu_seqlens": torch.tensor([0, 3, 12], dtype=torch.int32), "max_seqlen": 9, "scale": 1.0
    }  # fmt: skip
    change(arguments)
    with pytest.raises(ValueError, match=rf"\b{name} must"):
        attention_forward(**arguments)


# --- GPU only ---


@pytest.mark.gpu
@pytest.mark.parametrize("length", [16, 64, 128, 512])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_large_batches(device, dtype, length, p):
    lengths = torch.randint(1, length + 1, (16384 // length,)).tolist()
    problem(device, dtype, lengths, heads=12, p=p, max_seqlen=length).check()


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(device):
    from bert_fast.kernels.attention import attention_backward, attention_forward

    heads, head_dim, length = 16, 64, 128
    tokens = 2**31 // (3 * heads * head_dim) // length * length + 8 * length
    qkv = torch.randn(tokens, 3, heads, head_dim, dtype=torch.bfloat16, device=device)
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    out, lse = attention_forward(*qkv.unbind(1), cu_seqlens, length, scale=0.125)
    gradients = torch.zeros_like(qkv)
    attention_backward(out, *qkv.unbind(1), out, lse, cu_seqlens, length, scale=0.125, dqkv=gradients.unbind(1))
    last = qkv[-length:].contiguous()
    last_cu = torch.tensor([0, length], dtype=torch.int32, device=device)
    last_out, last_lse = attention_forward(*last.unbind(1), last_cu, length, scale=0.125)
    assert torch.equal(out[-length:], last_out)
    last_gradients = attention_backward(last_out, *last.unbind(1), last_out, last_lse, last_cu, length, scale=0.125)[:3]
    assert torch.equal(gradients[-length:], torch.stack(last_gradients, 1))
