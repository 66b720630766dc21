"""Whether the GPU's steps compute what transformers' model computes, over schedules like a server's.

In float32 flash attention is replaced by plain torch, so what is compared is all the rest, and nearly to the last bit.
In bfloat16 everything is as it serves: flash attention, recorded steps. There is no exact answer then; the measure is
how far transformers' own bfloat16 is from float32.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from transformers import Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.model.cuda_batch import StepSize
from guardwire_server.model.cuda_forward import FlashAttention
from guardwire_server.model.cuda_graphs import Recorder
from tests.bench.ceilings import body_parameters
from tests.bench.gpu_models import Shape, random_guard
from tests.bench.progress import say
from tests.model.cuda_stepping import Ragged, cuda_stepper, plan_of
from tests.model.flash_reference import reference_flash

MAX_PARAMETERS = 600e6
"""In the layers that are compared: all of the smallest model's, and a few of the others', of which four are loaded."""

NUM_SEQUENCES = 16
EXTENT_TOKENS = 256
EXTENTS = [Extent(EXTENT_TOKENS * number, EXTENT_TOKENS) for number in range(NUM_SEQUENCES)]
NUM_SLOTS = EXTENT_TOKENS * NUM_SEQUENCES
NUM_STEPS = 30
LARGEST = StepSize(max_tokens=1024, max_seqs=NUM_SEQUENCES, max_keys=EXTENT_TOKENS)

FLOAT32_TOLERANCE = 1e-4
"""Of the hidden states, relative: the norm of the difference over the norm. Only the order of sums differs."""

BFLOAT16_TOLERANCE = 1.25
"""Times as far from float32 as transformers' bfloat16, in the same measure."""

Figures = dict[str, float]


def measure_parity(
    shape: Shape, device: torch.device, recorder: Recorder, attention: FlashAttention | None, num_steps: int = NUM_STEPS
) -> Figures:
    """Relative distances of hidden states from transformers' float32; of transformers' own bfloat16 too."""
    per_layer = body_parameters(shape.config()) / shape.num_layers
    shape = replace(shape, num_layers=min(shape.num_layers, int(MAX_PARAMETERS / per_layer)))
    say(f"{shape.name}: comparing with transformers ({shape.num_layers} layers, {num_steps} steps)")
    load = partial(random_guard, shape, device)
    steppers = {
        "float32": cuda_stepper(load(torch.float32).model, NUM_SLOTS, LARGEST, None, reference_flash),
        "bfloat16": cuda_stepper(load(torch.bfloat16).model, NUM_SLOTS, LARGEST, recorder, attention),
    }
    exact, other = (_Oracle(load(dtype).model) for dtype in (torch.float32, torch.bfloat16))
    squares = dict.fromkeys((*steppers, "bfloat16_transformers"), 0.0)
    norm = 0.0
    ragged = Ragged(EXTENTS, shape.vocabulary_size)
    for chunks in ragged.steps(num_steps):
        expected, others = (
            torch.cat([oracle.whole(ragged.ids[index])[start:] for index, start, _ in chunks])
            for oracle in (exact, other)
        )
        plan = plan_of(*((EXTENTS[index], start, ids) for index, start, ids in chunks))
        hidden = {name: stepper.step(plan).float().cpu() for name, stepper in steppers.items()}
        hidden["bfloat16_transformers"] = others
        norm += float(expected.square().sum())
        for name, states in hidden.items():
            squares[name] += float((states - expected).square().sum())
    return {name: math.sqrt(square / norm) for name, square in squares.items()}


def is_reached(figures: Figures) -> bool:
    """Whether the distances are within the tolerances; nothing is, if anything is not a number."""
    return (
        figures["float32"] <= FLOAT32_TOLERANCE
        and figures["bfloat16"] <= BFLOAT16_TOLERANCE * figures["bfloat16_transformers"]
    )


class _Oracle:
    """transformers' model over whole sequences."""

    def __init__(self, model: Qwen3Model) -> None:
        model.set_attn_implementation("sdpa")
        self._model = model

    @torch.inference_mode()
    def whole(self, ids: Sequence[int]) -> torch.Tensor:
        """Hidden states [T, H], float32, on the host."""
        device = self._model.embed_tokens.weight.device
        output = self._model(input_ids=torch.tensor([ids], device=device), use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden.float().cpu()
