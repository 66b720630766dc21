"""What both training loops share: batching by length, dropout, the schedule and averaged weights."""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from guardwire_server.demo.muon import Muon

Item = TypeVar("Item")

_WORD_DROPOUT = 0.03
_WEIGHT_DECAY = 0.05


def length_batches(
    items: Sequence[Item], length: Callable[[Item], int], max_tokens: int, rng: random.Random
) -> Iterator[list[Item]]:
    """Yields all items in batches of similar length and at most `max_tokens` padded tokens, in random order."""
    # A little noise keeps neighbours in length from meeting again in every pass.
    ordered = sorted(items, key=lambda item: length(item) + rng.random() * 4)
    batches: list[list[Item]] = []
    batch: list[Item] = []
    longest = 0
    for item in ordered:
        longest = max(longest, length(item))
        if batch and longest * (len(batch) + 1) > max_tokens:
            batches.append(batch)
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        batches.append(batch)
    rng.shuffle(batches)
    yield from batches


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Stacks rows of ids to [B, T] int64, filled up on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pad_weights(rows: Sequence[Sequence[float]]) -> Tensor:
    """Stacks rows of weights to [B, T] float32, filled up with zero."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])


def add_word_dropout(backbone: nn.Module) -> None:
    """Blanks a few words of every training input, so that no single word decides."""

    def drop_words(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if not module.training:
            return output
        kept = torch.rand(output.shape[:-1]) >= _WORD_DROPOUT
        return output * kept.unsqueeze(-1)

    backbone.get_submodule("embed_tokens").register_forward_hook(drop_words)


class AveragedOptimiser:
    """Muon for the matrices of decoder layers, AdamW for all else, under a one-cycle schedule.

    It keeps an exponential average of the weights, which is what gets saved. Where several processes train together,
    each brings the loss of its own batch and all take the same step.
    """

    def __init__(
        self, network: nn.Module, *, learning_rate: float, num_steps: int, average_decay: float = 0.998
    ) -> None:
        inner = [parameter for name, parameter in network.named_parameters() if _is_inner(name, parameter)]
        outer = [parameter for name, parameter in network.named_parameters() if not _is_inner(name, parameter)]
        matrices = [parameter for parameter in outer if parameter.dim() > 1]
        vectors = [parameter for parameter in outer if parameter.dim() <= 1]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
                lr=learning_rate,
                betas=(0.9, 0.98),
                foreach=True,
            )
        ]
        if inner:
            self._optimisers.append(Muon(inner, learning_rate=learning_rate, weight_decay=_WEIGHT_DECAY))
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _one_cycle(step, num_steps))
            for optimiser in self._optimisers
        ]
        self._network = network
        self._average_decay = average_decay
        self._average = [parameter.detach().clone() for parameter in network.parameters()]

    def step(self, loss: Tensor) -> None:
        """One update from `loss`."""
        loss.backward()  # type: ignore[no-untyped-call]
        if distributed.is_initialized():
            _average_gradients(self._network)
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self._average, list(self._network.parameters()), 1 - self._average_decay)

    def averaged(self) -> list[Tensor]:
        """The averaged weights, in the order of `network.parameters()`."""
        return copy.copy(self._average)

    def load_averaged(self) -> None:
        """Replaces the network's weights by their average."""
        with torch.no_grad():
            for parameter, average in zip(self._network.parameters(), self._average, strict=True):
                parameter.copy_(average)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    return ".layers." in name and parameter.dim() > 1


def process_rank() -> int:
    """Number of this process among those that train together, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def _average_gradients(network: nn.Module) -> None:
    """Replaces every gradient by its mean over all processes; what a batch did not touch counts as zero."""
    parameters = list(network.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def _one_cycle(step: int, num_steps: int) -> float:
    warm_up = max(1, num_steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, num_steps - warm_up))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
