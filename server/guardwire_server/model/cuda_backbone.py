"""Steps of a Qwen3 backbone over an arena on a GPU: inputs up, a recorded forward, hidden states for the heads.

Theory of operation. A step is issued without a wait: its inputs go up from pinned memory, which PyTorch lends out again
only when the device has read it, the recorded forward is replayed, and the heads are issued behind it while it runs.
The first wait is for the verdicts. Everything goes to one stream, so the next step's inputs arrive when this step is
done with the buffer that all recordings read.

One step is under way at a time. The device could have the next one queued, which would hide the host's work between two
steps; but callers who wait for each verdict would then find the step that their next token belongs to issued already,
and every step would be half full. The engine would also have to plan over results that it does not have.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from transformers import Qwen3Model

from guardwire_server.core.step_plan import StepPlan
from guardwire_server.model.cuda_batch import (
    Bucket,
    StepInputs,
    StepSize,
    bucket_of,
    choose_bucket,
    default_buckets,
    fill,
    split,
)
from guardwire_server.model.cuda_forward import CudaForward, flash_attention, unfit
from guardwire_server.model.cuda_graphs import CudaRecorder, Recorder, Recording, record_all
from guardwire_server.model.flash_probe import find_fault
from guardwire_server.model.ragged_attention import KvTensors, num_kv_heads

logger = logging.getLogger(__name__)

Forward = Callable[[StepInputs[torch.Tensor], KvTensors], torch.Tensor]
"""Gives the hidden states [T, H] of a step; cuda_forward.CudaForward."""

NUM_TRASH_SLOTS = 1
"""Slots behind the arena's own, which padding writes to."""

_EMPTY_PLAN = StepPlan((), ())


def cuda_backbone(
    model: Qwen3Model, num_slots: int, largest: StepSize, kv_dtype: torch.dtype | None = None
) -> "CudaBackbone | None":
    """Takes over a model on a GPU; None, with the reason in the log and the model as it was, if it is not fit for this.

    Args:
        model: In evaluation mode, on its device, in its dtype.
        num_slots: Token slots of the arena.
        largest: What is recorded is made for steps up to this size; others work too.
        kv_dtype: What keys and values are kept in; None: the model's.
    """
    config, weight = model.config, model.embed_tokens.weight
    kv_dtype = kv_dtype or weight.dtype
    reason = unfit(model, kv_dtype) or find_fault(
        flash_attention(),
        weight.device,
        weight.dtype,
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads(config),
        head_dim=config.head_dim,
    )
    if reason:
        logger.warning("this GPU runs transformers' layers, which is slower: %s", reason)
        return None
    forward = CudaForward(model)
    kv = KvTensors(config, num_slots + NUM_TRASH_SLOTS, weight.device, kv_dtype)
    return CudaBackbone(forward, kv, largest, CudaRecorder(weight.device))


class CudaBackbone:
    """Implements backbone.Stepper. Owner and thread: one backend, on the device thread.

    Invariant: the last slot of the arena's tensors is nobody's.
    """

    def __init__(self, forward: Forward, kv: KvTensors, largest: StepSize, recorder: Recorder | None) -> None:
        """Records the steps of the default buckets.

        Args:
            forward: The backbone.
            kv: The arena, with NUM_TRASH_SLOTS slots more than the plans know of.
            largest: The largest step that is to be expected.
            recorder: What records; None: nothing is recorded, and every step is issued operation by operation.
        """
        self.kv = kv
        self._forward = forward
        self._device = kv.keys.device
        self._trash_slot = kv.keys.shape[2] - NUM_TRASH_SLOTS
        buckets = default_buckets(largest)
        num_words = max(bucket.num_words for bucket in buckets)
        self._words = torch.zeros(num_words, dtype=torch.int32, device=self._device)
        self._recordings: dict[Bucket, Recording] = {}
        if recorder:
            with torch.inference_mode():
                self._recordings = record_all(buckets, self._padding_alone, recorder)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> torch.Tensor:
        """Issues one step: copies, then one forward over all chunks. The host waits for nothing.

        Returns:
            Hidden states [T, H] after the final norm, in the order of the chunks' tokens; valid until the next step.
        """
        for move in plan.copies:
            self.kv.copy(move)
        needed = bucket_of(plan)
        bucket = choose_bucket(tuple(self._recordings), needed)
        if bucket:
            self._send(plan, bucket, self._words)
            recording = self._recordings[bucket]
            recording.replay()
            return recording.output[: needed.num_tokens]
        words = torch.empty(needed.num_words, dtype=torch.int32, device=self._device)
        self._send(plan, needed, words)
        return self._forward(split(words, needed), self.kv)

    def _send(self, plan: StepPlan, bucket: Bucket, words: torch.Tensor) -> None:
        """Fills a step's inputs in on the host and has them copied to `words` on the device."""
        is_pinned = self._device.type == "cuda"  # or the host would wait for the device here
        host = torch.empty(bucket.num_words, dtype=torch.int32, pin_memory=is_pinned)
        fill(plan, split(host.numpy(), bucket), self._trash_slot)
        words[: bucket.num_words].copy_(host, non_blocking=True)

    def _padding_alone(self, bucket: Bucket) -> Callable[[], torch.Tensor]:
        """Work to record, over inputs that touch no sequence."""
        self._send(_EMPTY_PLAN, bucket, self._words)
        return partial(self._forward, split(self._words, bucket), self.kv)
