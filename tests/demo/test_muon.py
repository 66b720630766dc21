"""The training's own optimiser."""

import pytest
import torch
from torch import nn

from guardwire_server.demo.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (96, 48)])
def test_all_directions_come_out_equally_long(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    skewed = left @ torch.diag(torch.linspace(1, 30, len(values))) @ right
    singular_values = torch.linalg.svdvals(orthogonalise(skewed))
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.3


def test_a_step_moves_against_the_gradient_as_far_as_adam_would() -> None:
    matrix = nn.Parameter(torch.zeros(40, 60))
    optimiser = Muon([matrix], learning_rate=0.01, weight_decay=0.0)
    (matrix * torch.randn(40, 60, generator=torch.Generator().manual_seed(2))).sum().backward()  # type: ignore[no-untyped-call]
    gradient = matrix.grad
    assert gradient is not None
    optimiser.step()
    assert (matrix * gradient).sum() < 0
    assert 0.1 < (matrix.square().mean().sqrt() / 0.01).item() < 0.3  # 0.2, see _ADAM_RMS
