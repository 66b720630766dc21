"""Steps through the GPU's backbone, wherever its tensors lie."""

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, Copy, Read, StepPlan
from guardwire_server.model.cuda_backbone import NUM_TRASH_SLOTS, CudaBackbone
from guardwire_server.model.cuda_batch import StepSize
from guardwire_server.model.cuda_forward import CudaForward, FlashAttention
from guardwire_server.model.cuda_graphs import Recorder, Recording
from guardwire_server.model.ragged_attention import KvTensors


class ReplayRecorder:
    """Records without a GPU: a replay does the work again, into the memory of the recording."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def __call__(self, work: Callable[[], torch.Tensor]) -> Recording:
        output = work().clone()
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            output.copy_(work())

        return Recording(replay, output)


def cuda_stepper(
    model: Qwen3Model,
    num_slots: int,
    largest: StepSize,
    recorder: Recorder | None = None,
    attention: FlashAttention | None = None,
) -> CudaBackbone:
    """Takes over a model; the arena's slots are NaN until they are written, so that whoever reads too many is found."""
    weight = model.embed_tokens.weight
    kv = KvTensors(model.config, num_slots + NUM_TRASH_SLOTS, weight.device, weight.dtype)
    kv.keys.fill_(torch.nan)
    kv.values.fill_(torch.nan)
    return CudaBackbone(CudaForward(model, attention), kv, largest, recorder)


def plan_of(*chunks: tuple[Extent, int, Sequence[int]], copies: Sequence[Copy] = ()) -> StepPlan:
    """(extent, start, ids) chunks of which every token is read."""
    return StepPlan(
        tuple(copies),
        tuple(
            Chunk(number, 0, start, array("i", ids), bytes((Read.RESPONSE,)) * len(ids), extent)
            for number, (extent, start, ids) in enumerate(chunks)
        ),
    )


@dataclass
class Ragged:
    """Sequences that grow by chunks of any size and are rolled back: what a server's steps look like.

    `extents` are as many as there are sequences; a sequence never outgrows its own.
    """

    extents: Sequence[Extent]
    vocabulary_size: int
    seed: int = 0
    ids: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.ids = [[] for _ in self.extents]

    def steps(self, num_steps: int) -> Iterator[list[tuple[int, int, list[int]]]]:
        """Steps of (sequence, start, ids); `ids` holds every sequence as it is after the step that was given last."""
        for number in range(num_steps):
            is_single = number % 3 == 2  # every third step has one token a sequence
            chunks = []
            for index, extent in enumerate(self.extents):
                sequence = self.ids[index]
                if sequence and self._random.random() < 0.2:
                    del sequence[self._random.randrange(len(sequence)) :]
                num_free = extent.capacity - len(sequence)
                if num_free and self._random.random() < 0.8:
                    num_new = 1 if is_single else self._random.choice((1, 1, 2, 5, 40, 150))
                    new_ids = self._random.choices(range(self.vocabulary_size), k=min(num_new, num_free))
                    chunks.append((index, len(sequence), new_ids))
                    sequence += new_ids
            if chunks:
                yield chunks
