"""Work recorded as CUDA graphs, one for each bucket, and replayed.

Theory of operation. A step of a small model is hundreds of launches of a few microseconds each, which the host cannot
issue as fast as the device runs them. A recording is issued at once. It reads and writes the memory that it was made
with: the inputs lie in one buffer, which whoever replays fills before; what is computed on the way lies in a pool that
all recordings share, so that they take little more than the largest one; the output may be overwritten by the next
replay of any of them. Everything is issued to one stream, so a replay begins when what was issued before is done.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from guardwire_server.model.cuda_batch import Bucket

logger = logging.getLogger(__name__)

NUM_WARM_UPS = 2
"""Libraries allocate and choose kernels at their first calls, which must not be recorded."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded piece of work: `replay` issues it again, into `output`."""

    replay: Callable[[], None]
    output: torch.Tensor


class Recorder(Protocol):
    """Records a piece of work that issues the same operations over the same memory whenever it is called."""

    def __call__(self, work: Callable[[], torch.Tensor]) -> Recording:
        """Calls `work` a few times and records it. Raises RuntimeError where it cannot be recorded."""
        ...


class CudaRecorder:
    """Records on a GPU. Owner: one backbone. Its recordings share memory, so no two of them may run at once."""

    def __init__(self, device: torch.device) -> None:
        """Allocates nothing yet."""
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], torch.Tensor]) -> Recording:
        """As in Recorder."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(NUM_WARM_UPS):
                    work()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = work()
            torch.cuda.current_stream().wait_stream(self._stream)
        return Recording(graph.replay, output)


def record_all(
    buckets: Sequence[Bucket],
    work_for: Callable[[Bucket], Callable[[], torch.Tensor]],
    recorder: Recorder,
) -> dict[Bucket, Recording]:
    """Records every bucket; those that cannot be recorded are left out, which is said once.

    Args:
        buckets: What to record, the cheapest first; the largest is recorded first, so that the others fit its memory.
        work_for: Makes a bucket's inputs ready and gives its work.
        recorder: Records it.

    Returns:
        The recordings, the cheapest first.
    """
    recordings: dict[Bucket, Recording] = {}
    failure = None
    for bucket in reversed(buckets):
        try:
            recordings[bucket] = recorder(work_for(bucket))
        except RuntimeError as error:
            failure = error
    if failure:
        num_failed = len(buckets) - len(recordings)
        logger.warning("%d of %d step sizes cannot be recorded as CUDA graphs: %s", num_failed, len(buckets), failure)
    return dict(reversed(recordings.items()))
