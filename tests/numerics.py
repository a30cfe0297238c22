"""The numeric contract: how far a result may lie from the float64 truth, measured against eager PyTorch.

Truth is computed in float64 from the inputs as they were rounded to the dtype under test. ``eager`` is what plain
PyTorch gives in that dtype. With u the unit roundoff of the dtype, a result passes when

    rms(err) <= 2 * rms(eager err) + c * u * rms(truth)
    max(err) <= 4 * max(eager err) + 8 * u * max|truth|

where c is 1, or sqrt(K) for a float32 product over K terms. Under 64 elements only the second bound is meaningful.
"""

import math

import torch

UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def error_ratios(
    actual: torch.Tensor, eager: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype, k: int = 1
) -> tuple[float, float]:
    """The errors of ``actual`` as shares of what the contract allows (rms, max): at most 1 passes."""
    assert actual.shape == eager.shape == truth.shape, (actual.shape, eager.shape, truth.shape)
    assert truth.dtype == torch.float64, f"truth must be float64, not {truth.dtype}"
    if truth.numel() == 0:
        return 0.0, 0.0
    u = UNIT_ROUNDOFF[dtype]
    truth = truth.detach().cpu()
    err = (actual.detach().cpu().double() - truth).abs()
    eager_err = (eager.detach().cpu().double() - truth).abs()
    c = math.sqrt(k) if dtype == torch.float32 else 1.0
    rms_bound = 2 * _rms(eager_err) + c * u * _rms(truth)
    max_bound = 4 * eager_err.max().item() + 8 * u * truth.abs().max().item()
    rms_ratio = 0.0 if truth.numel() < 64 else _ratio(_rms(err), rms_bound)
    return rms_ratio, _ratio(err.max().item(), max_bound)


def assert_close_to_truth(
    actual: torch.Tensor,
    eager: torch.Tensor,
    truth: torch.Tensor,
    dtype: torch.dtype,
    k: int = 1,
    name: str = "result",
) -> None:
    """Assert that ``actual`` holds the contract. ``k``: terms of the longest float32 sum behind one element."""
    assert torch.isfinite(actual).all(), f"{name}: {(~torch.isfinite(actual)).sum().item()} elements are not finite"
    rms_ratio, max_ratio = error_ratios(actual, eager, truth, dtype, k)
    assert rms_ratio <= 1 and max_ratio <= 1, (
        f"{name}: error is {rms_ratio:.2f}x the allowed rms and {max_ratio:.2f}x the allowed maximum ({dtype})"
    )


def _rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def _ratio(error: float, bound: float) -> float:
    if error == 0:
        return 0.0
    return error / bound if bound > 0 else math.inf
