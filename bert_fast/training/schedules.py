"""Learning rates that rise linearly from 0, and fall as a power: what BERT and LAMB were trained with."""

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class WarmUpAndDecay:
    """The factor of the learning rate at a step; an object, so that a scheduler's state_dict keeps its numbers."""

    warmup_steps: int
    total_steps: int
    power: float = 1.0
    end: float = 0.0
    from_start: bool = False

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        first = 0 if self.from_start else self.warmup_steps
        left = max(0.0, (self.total_steps - step) / max(1, self.total_steps - first))
        return self.end + (1 - self.end) * left**self.power


def polynomial_schedule(
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: int,
    *,
    power: float = 1.0,
    end: float = 0.0,
    from_start: bool = False,
    last_epoch: int = -1,
) -> LambdaLR:
    """From 0 up to the optimizer's learning rate in ``warmup_steps``, then down to ``end`` times it at ``total_steps``.

    ``scheduler.step()`` belongs after every ``optimizer.step()``. The first step is taken with a rate of 0, as BERT's
    was.

    Args:
        power: of the share of steps that is left; 1 is a line, 0.5 what BERT was trained with by LAMB.
        end: what the factor falls to, and stays at.
        from_start: the fall is counted from step 0, so that the rate drops from the line where the warm-up ends: as
            google-research/bert and NVIDIA's BERT do. By default it is counted from the end of the warm-up, as
            ``transformers`` does.

    Raises:
        ValueError: numbers of steps that are negative or no warm-up's, ``power`` or ``end`` out of range.
    """
    if not 0 <= warmup_steps <= total_steps or total_steps < 1:
        raise ValueError(
            f"0 <= warmup_steps <= total_steps and 1 <= total_steps must hold, not {warmup_steps} and {total_steps}"
        )
    if power <= 0:
        raise ValueError(f"power must be above 0, not {power}")
    if not 0 <= end <= 1:
        raise ValueError(f"end must lie between 0 and 1, not {end}")
    return LambdaLR(optimizer, WarmUpAndDecay(warmup_steps, total_steps, power, end, from_start), last_epoch)


def linear_schedule(optimizer: Optimizer, warmup_steps: int, total_steps: int, last_epoch: int = -1) -> LambdaLR:
    """:func:`polynomial_schedule` along a line down to 0."""
    return polynomial_schedule(optimizer, warmup_steps, total_steps, last_epoch=last_epoch)
