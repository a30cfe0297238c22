"""One plain-PyTorch function per op: the CPU path, the fallback, the test oracle and the baseline.

Everything here is differentiable, compiles, runs on any device and in any floating dtype, float64 included. Statistics
are taken in at least float32. Dimensions: T tokens in the packed batch, B sequences, S padded length, H hidden,
N heads, D head dim.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_U32 = 0xFFFFFFFF
ATTENTION_WIDTH = 65536


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU of Hendrycks and Gimpel (2016): ``approximate="none"`` is exact (erf), ``"tanh"`` is Google's formula."""
    return F.gelu(x, approximate=approximate)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str = "none") -> Tensor:
    """``gelu(x + bias)`` for ``x [..., I]`` and ``bias [I]``."""
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension (Ba et al., 2016), statistics in at least float32, result in x's dtype."""
    dtype = x.dtype
    if x.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        # With 16-bit weights PyTorch saves 1 / deviation in 16 bits for the backward pass: inf for a constant row.
        dtype = torch.float32
    return F.layer_norm(x, weight.shape, weight.to(dtype), None if bias is None else bias.to(dtype), eps)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    x_bias: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``LN(residual + dropout(x + x_bias))`` for ``x`` and ``residual`` ``[T, H]``.

    With ``seed`` the mask is the kernels' own Philox mask; without, PyTorch's generator draws it. Mixed dtypes promote,
    and under autocast the result is float32, as eager LayerNorm's is.
    """
    if x_bias is not None:
        x = x + x_bias
    return layer_norm(residual + dropout(x, p, seed, site), weight, bias, eps)


def gelu_layer_norm(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, approximate: str = "none"
) -> Tensor:
    """``LN(gelu(x + bias))``: the transform of BERT's masked-LM head after its matrix product."""
    return layer_norm(bias_gelu(x, bias, approximate), weight, ln_bias, eps)


def embedding_layer_norm(
    input_ids: Tensor,
    token_type_ids: Tensor | None,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    padding_idx: int | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``dropout(LN(word[input_ids] + token_type[token_type_ids] + position[position_ids]))``, ``[T]`` -> ``[T, H]``.

    ``token_type_ids=None`` stands for row 0, which still adds. ``padding_idx``: the word row that gets no gradient.
    The order of the two additions is that of Hugging Face's ``BertEmbeddings``.
    """
    types = token_type[0] if token_type_ids is None else F.embedding(token_type_ids, token_type)
    summed = F.embedding(input_ids, word, padding_idx) + types + F.embedding(position_ids, position)
    return dropout(layer_norm(summed, weight, bias, eps), p, seed, site)


def scaled_masked_softmax(
    scores: Tensor,
    mask: Tensor | None = None,
    scale: float = 1.0,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``dropout(softmax(scale * scores + mask))`` for ``scores [B, N, Q, K]`` and an additive mask that broadcasts.

    Keys whose score is -inf, or whose mask is at most half the dtype's minimum, are hidden: exactly 0. A row with no
    visible key is all 0.
    """
    scores = scores * scale
    visible = scores != -math.inf
    if mask is not None:
        visible = visible & (mask > torch.finfo(mask.dtype).min / 2)
        scores = scores + mask
    probs = torch.softmax(scores.masked_fill(~visible, torch.finfo(scores.dtype).min), -1) * visible
    return dropout(probs, p, seed, site, width=ATTENTION_WIDTH)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = -100,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of ``logits [R, V]`` and integer ``labels [R]``, 0 where the label is ``ignore_index``.

    ``label_smoothing`` is PyTorch's (Szegedy et al., 2016); ``z_loss`` times the squared log-sum-exp is added to each
    row's loss (Chowdhery et al., 2022). The mean is over the rows that are not ignored, and 0 when there are none:
    PyTorch's would be NaN, and spoil a training step that merely had nothing to learn. In at least float32: a float16
    sum over many rows could overflow.
    """
    labels = labels.long()
    losses = F.cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    dtype = torch.promote_types(losses.dtype, torch.float32)
    if z_loss:
        squares = torch.logsumexp(logits.to(dtype), 1).square()
        losses = losses + z_loss * squares.masked_fill(labels == ignore_index, 0)
    if reduction == "none":
        return losses.to(dtype)
    total = losses.sum(dtype=dtype)
    return total if reduction == "sum" else total / (labels != ignore_index).sum().clamp(min=1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    window: int | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """Bidirectional attention within each sequence of a packed batch (Vaswani et al., 2017), by the definition.

    Args:
        q, k, v: ``[T, N, D]``; sequence b owns rows ``cu_seqlens[b]:cu_seqlens[b + 1]``.
        cu_seqlens: int32 ``[B + 1]``.
        max_seqlen: at least the longest sequence's length.
        scale: of the scores; ``1 / sqrt(D)`` by default.
        bias: additive ``[B or 1, N or 1, S, S]`` with ``S >= max_seqlen``, by position within the sequence; -inf hides.
        key_mask: bool ``[T]``; a key that is False is seen by no query.
        window: how many places a key may lie from a query that sees it (Beltagy et al., 2020).
        p, seed, site: dropout of the probabilities.

    Returns:
        ``[T, N, D]``; rows that see no key are 0, and what hidden rows hold (NaN included) never matters.
    """
    if not torch.compiler.is_compiling() and q.shape[0] == 0:
        return q + k + v  # empty, and still a function of all three
    rows, present = padded_rows(cu_seqlens, max_seqlen, q.shape[0])
    if key_mask is not None:
        present = present & key_mask[rows]
    hidden = ~present[:, :, None, None]
    qp = q[rows].transpose(1, 2)
    kp, vp = (x[rows].masked_fill(hidden, 0).transpose(1, 2) for x in (k, v))
    scores = qp @ kp.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    visible = present[:, None, None, :]
    if window is not None:
        visible = visible & within_window(max_seqlen, window, q.device)
    if bias is not None:
        bias = bias[..., :max_seqlen, :max_seqlen]
        visible = visible & (bias != -math.inf)
        scores = scores + bias
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    probs = torch.softmax(scores, -1) * visible
    if p > 0 and seed is not None:
        head = torch.arange(q.shape[1], device=q.device)
        first = (rows[:, None, :] * q.shape[1] + head[None, :, None]) * ATTENTION_WIDTH
        index = first[..., None] + torch.arange(max_seqlen, device=q.device)
        probs = probs * dropout_keep(seed, site, p, index) / (1 - p) if p < 1 else probs * 0
    else:
        probs = dropout(probs, p)
    sequence, offset = sequence_of_row(cu_seqlens, q.shape[0])
    return (probs @ vp).transpose(1, 2)[sequence, offset]


def within_window(seqlen: int, window: int, device: torch.device) -> Tensor:
    """Which of S keys each of S queries sees when a key may lie at most ``window`` places away: bool ``[S, S]``."""
    place = torch.arange(seqlen, device=device)
    return (place[:, None] - place[None, :]).abs() <= window


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021), a head's two halves as pairs: see :func:`bert_fast.ops.rotary`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(dtype).chunk(2, -1)
    lead = (x.shape[0], *[1] * (x.dim() - 2), cos.shape[-1])
    cos, sin = cos.to(dtype).reshape(lead), sin.to(dtype).reshape(lead)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def padded_rows(cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The packed row behind each slot of the padded batch, int64 ``[B, S]``, and whether there is one, bool."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    rows = starts[:, None] + torch.arange(max_seqlen, device=cu_seqlens.device)
    return rows.clamp(max=max(tokens - 1, 0)), rows < ends[:, None]


def sequence_of_row(cu_seqlens: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """For each of the T packed rows, which sequence it belongs to and its offset there: two int64 ``[T]``."""
    row = torch.arange(tokens, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens.long(), row, right=True) - 1
    return sequence, row - cu_seqlens.long()[sequence]


def pool(hidden: Tensor, cu_seqlens: Tensor, mode: str, normalize: bool) -> Tensor:
    """One vector per packed sequence, ``[T, H]`` -> ``[B, H]`` in at least float32: :func:`bert_fast.ops.pooling.pool`.

    `torch.segment_reduce` sums each segment in order, so results do not change from run to run (index_add on a GPU
    does) nor with the batch a sequence is in. A maximum's gradient goes to the first row that it is in, as that of
    `torch.max(dim)` does; segment_reduce itself would share it out among equals.
    """
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    empty = (lengths == 0)[:, None]
    options = {"lengths": lengths, "axis": 0, "unsafe": True}
    if len(hidden) == 0 or len(lengths) == 0:
        pooled = hidden.to(dtype).sum(0) * hidden.new_zeros(len(lengths), 1, dtype=dtype)  # and still a function of it
    elif mode == "cls":
        pooled = hidden[starts.clamp(max=len(hidden) - 1)].to(dtype).masked_fill(empty, 0)
    elif mode == "mean":
        total = torch.segment_reduce(hidden.to(dtype), "sum", initial=0, **options)
        pooled = total / lengths.clamp(min=1)[:, None]
    else:
        with torch.no_grad():
            values = hidden.to(dtype)
            highest = torch.segment_reduce(values, "max", **options)
        if torch.is_grad_enabled() and hidden.requires_grad:
            highest = hidden.gather(0, _first_places(values, highest, lengths, options)).to(dtype)
        pooled = highest.masked_fill(empty, 0)
    return F.normalize(pooled, dim=-1) if normalize else pooled


def _first_places(values: Tensor, highest: Tensor, lengths: Tensor, options: dict) -> Tensor:
    """The first row in which each sequence's maximum stands, int64 ``[B, H]``; NaN, too, is found."""
    rows = len(values)
    wanted = torch.repeat_interleave(highest, lengths, 0, output_size=rows)
    found = (values == wanted) | (values.isnan() & wanted.isnan())
    row = torch.arange(rows, dtype=torch.float64, device=values.device)[:, None]
    places = torch.segment_reduce(torch.where(found, row, rows), "min", **options)
    return places.clamp(0, rows - 1).long()


def dropout(x: Tensor, p: float, seed: Tensor | None = None, site: int = 0, width: int | None = None) -> Tensor:
    """Dropout (Srivastava et al., 2014) by the Philox of ``seed`` and ``site``, or by PyTorch's own generator.

    ``width`` is the stride between rows in the mask's index: the length of the last dimension by default.
    """
    if p == 0 or seed is None:
        return F.dropout(x, p)
    if p == 1:
        return x * 0
    columns = x.shape[-1]
    row = torch.arange(x.numel() // max(columns, 1), device=x.device).view(*x.shape[:-1], 1)
    index = row * (width or columns) + torch.arange(columns, device=x.device)
    return x * dropout_keep(seed, site, p, index) / (1 - p)


def dropout_keep(seed: Tensor, site: int, p: float, index: Tensor) -> Tensor:
    """Which elements dropout keeps: bool, shaped as ``index`` (int64, the element's place in the whole mask)."""
    threshold = min(max(round(p * 2**32), 0), _U32)
    return philox(seed, site, index) >= threshold


def philox(seed: Tensor, site: int, index: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al., 2011): the uint32 of each element, as int64, shaped as ``index``.

    Key = the seed's two words; counter = (index / 4, low word; high word; site; 0); the element takes word index % 4.
    """
    key = seed.reshape(())
    k0, k1 = key & _U32, (key >> 32) & _U32
    group = index >> 2
    c0, c1 = group & _U32, (group >> 32) & _U32
    c2, c3 = torch.full_like(c0, site & _U32), torch.zeros_like(c0)
    for _ in range(10):
        hi0, lo0 = _multiply_u32(c0, 0xD2511F53)
        hi2, lo2 = _multiply_u32(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = hi2 ^ c1 ^ k0, lo2, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _U32, (k1 + 0xBB67AE85) & _U32
    lane = index & 3
    return torch.where(lane < 2, torch.where(lane == 0, c0, c1), torch.where(lane == 2, c2, c3))


def _multiply_u32(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low words of a 32 x 32 bit product, by halves: int64 has no unsigned 64-bit product."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
