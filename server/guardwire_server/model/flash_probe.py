"""Whether flash attention does on this device what CudaForward needs of it.

PyTorch's operator is private and promises nothing. So before a model is given to it, it attends to a small arena of
random numbers in steps of both kinds, and the result is compared with the plain path's attention, piece by piece. The
slots that nobody may read hold NaN, which one read too many would show.
"""

from array import array

import torch

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, StepPlan
from guardwire_server.model.cuda_batch import Bucket, fill, split
from guardwire_server.model.cuda_forward import FlashAttention, attend
from guardwire_server.model.ragged_attention import Segment, attend_segment, causal_mask

_SINGLE = Bucket(num_tokens=8, max_query=1, num_pieces=8, max_keys=512)
_MIXED = Bucket(num_tokens=256, max_query=128, num_pieces=8, max_keys=512)
_SINGLE_CHUNKS = ((300, 1), (0, 1), (69, 1), (128, 1), (127, 1))
_MIXED_CHUNKS = ((40, 150), (0, 5), (130, 1), (257, 3))
_EXTENT_TOKENS = 320
_TOLERANCE = 1.5e-2
"""Of the whole output, relative. Rounding to bfloat16 on the way makes a few 1e-3; one key too many or too few in every
piece makes 2.4e-2 or more (tests/model/test_flash_probe.py)."""


@torch.inference_mode()
def find_fault(
    attention: FlashAttention,
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> str | None:
    """Tries an attention with heads of a model's shape; says why it is not fit, or None."""
    generator = torch.Generator().manual_seed(0)
    num_slots = _EXTENT_TOKENS * len(_SINGLE_CHUNKS) + 1

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    for sizes, bucket in (_SINGLE_CHUNKS, _SINGLE), (_MIXED_CHUNKS, _MIXED):
        plan = _plan(sizes)
        keys, values = (_arena(plan, normal(num_kv_heads, num_slots, head_dim)) for _ in range(2))
        query = normal(bucket.num_tokens, num_heads, head_dim)
        words = torch.zeros(bucket.num_words, dtype=torch.int32)
        fill(plan, split(words.numpy(), bucket), num_slots - 1)
        try:
            output = attend(attention, query, keys, values, split(words.to(device), bucket), head_dim**-0.5)
            distance = _distance(output[: plan.num_tokens], _expected(plan, query, keys, values))
        except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            return f"flash attention cannot be used: {error}"
        if not distance <= _TOLERANCE:
            return f"flash attention is not what is needed: off by {distance:.3g}"
    return None


def _plan(sizes: tuple[tuple[int, int], ...]) -> StepPlan:
    """Chunks of (cached, new) tokens, each in an extent of its own."""
    chunks = (
        Chunk(
            number,
            0,
            past,
            array("i", bytes(4 * num_new)),
            bytes(num_new),
            Extent(_EXTENT_TOKENS * number, _EXTENT_TOKENS),
        )
        for number, (past, num_new) in enumerate(sizes)
    )
    return StepPlan((), tuple(chunks))


def _arena(plan: StepPlan, numbers: torch.Tensor) -> torch.Tensor:
    """[K, S, D]: numbers where a sequence has its keys and in the trash slot, NaN elsewhere."""
    arena = torch.full_like(numbers, torch.nan)
    arena[:, -1] = numbers[:, -1]
    for chunk in plan.chunks:
        used = slice(chunk.extent.start, chunk.extent.start + chunk.start + len(chunk.ids))
        arena[:, used] = numbers[:, used]
    return arena


def _expected(plan: StepPlan, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """float32 [T, N, D] of queries [T, N, D] and the arena [K, S, D]."""
    outputs, begin = [], 0
    for chunk in plan.chunks:
        num_new = len(chunk.ids)
        mask = causal_mask(chunk.start, num_new, query.shape[1] // keys.shape[0], query.device)
        segment = Segment(chunk.extent.start, chunk.start, begin, begin + num_new, mask)
        rows = query[begin : begin + num_new].transpose(0, 1).float()
        outputs.append(attend_segment(rows, keys.float(), values.float(), segment, query.shape[2] ** -0.5))
        begin += num_new
    return torch.cat(outputs).view(-1, *query.shape[1:])


def _distance(output: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm; not a number where the output holds any that is not."""
    return float((output.float() - expected).norm() / expected.norm())
