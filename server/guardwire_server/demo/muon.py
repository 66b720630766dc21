"""The Muon optimiser for the matrices between embedding and heads.

It replaces the averaged gradient of a matrix by the nearest matrix with orthonormal rows (or columns), so that every
direction of it moves equally far; small networks then need about two thirds of the steps that Adam needs. Sources:
K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (the iteration and its coefficients);
J. Liu et al., "Muon is Scalable for LLM Training", 2025 (the factor that makes Adam's learning rates and weight decay
fit). torch's own class iterates in bfloat16, which most CPUs only emulate.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn

_MOMENTUM = 0.95
_ITERATIONS = 5
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_ADAM_RMS = 0.2  # of a usual Adam update, in units of the learning rate


class Muon(torch.optim.Optimizer):
    """Steps along orthogonalised momentum; processes that train together share the work."""

    def __init__(self, matrices: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        """Takes parameters [O, I]; every process must give the same ones, with the same gradients."""
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; `closure` is torch's and must be None."""
        assert closure is None
        for group in self.param_groups:
            matrices: list[Tensor] = group["params"]
            updates = _orthogonalise_together([self._direction(matrix) for matrix in matrices])
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * _ADAM_RMS * max(matrix.shape) ** 0.5)

    def _direction(self, matrix: Tensor) -> Tensor:
        """Nesterov momentum of the gradient."""
        assert matrix.grad is not None
        momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
        momentum.lerp_(matrix.grad, 1 - _MOMENTUM)
        return matrix.grad.lerp(momentum, _MOMENTUM)


def _orthogonalise_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each process orthogonalises its share; then all have all."""
    rank, num_processes = 0, 1
    if distributed.is_initialized():
        rank, num_processes = distributed.get_rank(), distributed.get_world_size()
    parts = [
        orthogonalise(matrix) if index % num_processes == rank else torch.zeros_like(matrix)
        for index, matrix in enumerate(matrices)
    ]
    if num_processes == 1:
        return parts
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    gathered = torch.split_with_sizes(flat, [matrix.numel() for matrix in matrices])
    return [part.view_as(matrix) for part, matrix in zip(gathered, matrices, strict=True)]


def orthogonalise(matrix: Tensor) -> Tensor:
    """About the orthonormal matrix nearest to `matrix` [O, I]: singular values between 0.7 and 1.2 (Jordan et al.)."""
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (torch.linalg.matrix_norm(wide) + 1e-7)
    for _ in range(_ITERATIONS):
        square = wide @ wide.T
        wide = _LINEAR * wide + (_CUBIC * square + _QUINTIC * square @ square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
