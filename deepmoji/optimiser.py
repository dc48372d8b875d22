"""Adam for the layers, and Adam on touched rows for the embedding.

A batch of 128 texts touches some 700 of 50,000 word vectors. Plain Adam reads and writes all of them, and with an
L2 term it would even pull words that never occur to zero at full learning rate. Here moments and vectors change
only for rows with a gradient, and L2 acts on those rows; the step count, hence the bias correction, is global.
Where every row is touched this is exactly Adam.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows of (V, E) matrices that have a gradient, sparse or dense; `l2` adds 2 * l2 * row to it."""

    def __init__(
        self, params: Iterable[Parameter], lr: float, l2: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        super().__init__(params, {"lr": lr, "l2": l2, "betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all rows with a gradient; `closure` is refused, one gradient per step is all there is."""
        if closure is not None:
            raise TypeError("RowAdam takes no closure.")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = float(state["step"])
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, grad = grad.indices()[0], grad.values()
        else:
            rows = grad.any(dim=1).nonzero()[:, 0]
            grad = grad[rows]
        beta1, beta2 = group["betas"]
        vectors, first, second = (m.index_select(0, rows) for m in (parameter, state["exp_avg"], state["exp_avg_sq"]))
        grad = grad.add(vectors, alpha=2 * group["l2"])
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        vectors.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**step))
        for matrix, changed in ((parameter, vectors), (state["exp_avg"], first), (state["exp_avg_sq"], second)):
            matrix.index_copy_(0, rows, changed)


def clip_gradients(parameters: list[Parameter], limit: float) -> Tensor:
    """Scale all gradients, sparse ones too, so that their joint norm is at most `limit`; returns the norm before."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # repeated rows add up before they are measured
    grads = [p.grad for p in parameters if p.grad is not None]
    values = [grad._values() if grad.is_sparse else grad for grad in grads]
    norm = torch.nn.utils.get_total_norm(values)
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(values, scale)
    return norm
