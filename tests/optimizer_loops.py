"""LAMB and Adam as their authors write them, one tensor and one step at a time: written apart from what they judge.

LAMB: algorithm 2 of arXiv 1904.00962. AdamW: algorithm 2 of arXiv 1711.05101. Google's Adam:
``AdamWeightDecayOptimizer.apply_gradients`` in google-research/bert, optimization.py. Everything is computed in the
dtype of the weight.
"""

import torch


def zeros(w):
    return {"m": torch.zeros_like(w), "v": torch.zeros_like(w), "t": 0}


def moments(state, g, beta1, beta2):
    state["t"] += 1
    state["m"] = beta1 * state["m"] + (1 - beta1) * g
    state["v"] = beta2 * state["v"] + (1 - beta2) * g**2
    return state["m"], state["v"], 1 - beta1 ** state["t"], 1 - beta2 ** state["t"]


def lamb(w, g, state, *, lr, betas=(0.9, 0.999), eps=1e-6, decay=0.01, correct=True, adapt=True, bounds=(0, torch.inf)):
    """The new weight; ``state`` is updated."""
    m, v, part1, part2 = moments(state, g, *betas)
    r = (m / part1) / ((v / part2) ** 0.5 + eps) if correct else m / (v**0.5 + eps)
    step = r + decay * w
    size, length = float((w**2).sum()) ** 0.5, float((step**2).sum()) ** 0.5
    ratio = min(max(size / length, bounds[0]), bounds[1]) if adapt and size > 0 and length > 0 else 1.0
    return w - lr * ratio * step


def lamb_l2(w, g, state, *, lr, betas=(0.9, 0.999), eps=1e-6, decay=0.01):
    """NVIDIA's variant, in which decay is part of the gradient."""
    return lamb(w, g + decay * w, state, lr=lr, betas=betas, eps=eps, decay=0.0)


def adamw(w, g, state, *, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.01):
    m, v, part1, part2 = moments(state, g, *betas)
    return w - lr * ((m / part1) / ((v / part2) ** 0.5 + eps) + decay * w)


def google_adam(w, g, state, *, lr, betas=(0.9, 0.999), eps=1e-6, decay=0.01):
    m, v, _, _ = moments(state, g, *betas)
    update = m / (v**0.5 + eps)
    update = update + decay * w
    return w - lr * update


def clipped(gradients, limit):
    """As ``clip_grad_norm_``: all gradients as one vector."""
    norm = sum(float((g.double() ** 2).sum()) for g in gradients) ** 0.5
    return [g * min(1.0, limit / (norm + 1e-6)) for g in gradients]


class LoopOptimizer:
    """One of the loops with the face of an optimizer, over groups of parameters; LAMB's adapts those that decay."""

    def __init__(self, groups, loop, limit=torch.inf, **settings):
        self.rows = [(p, g["weight_decay"], zeros(p.detach())) for g in groups for p in g["params"]]
        self.loop, self.limit, self.settings = loop, limit, settings

    @torch.no_grad()
    def step(self):
        gradients = clipped([p.grad for p, _, _ in self.rows], self.limit)
        for (p, decay, state), g in zip(self.rows, gradients, strict=True):
            adapt = {"adapt": decay != 0} if self.loop is lamb else {}
            p.copy_(self.loop(p.detach(), g, state, decay=decay, **adapt, **self.settings))

    def zero_grad(self):
        for p, _, _ in self.rows:
            p.grad = None
