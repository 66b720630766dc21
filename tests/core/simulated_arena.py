"""An arena that holds token ids where a real one holds keys and values, so that a misplaced one shows."""

from array import array

from guardwire_server.core.step_plan import Chunk, StepPlan

_UNWRITTEN = -1


class SimulatedArena:
    """Carries plans out as a backend must: copies in their order, then all chunks' tokens."""

    def __init__(self, num_tokens: int) -> None:
        self._slots = array("i", (_UNWRITTEN,)) * num_tokens

    def carry_out(self, plan: StepPlan) -> None:
        """Moves and writes what the plan says."""
        for copy in plan.copies:
            source, target, num_tokens = copy.source, copy.target, copy.num_tokens
            assert num_tokens <= min(source.capacity, target.capacity)
            self._slots[target.start : target.start + num_tokens] = self._slots[
                source.start : source.start + num_tokens
            ]
        for chunk in plan.chunks:
            assert chunk.start + len(chunk.ids) <= chunk.extent.capacity
            start = chunk.extent.start + chunk.start
            self._slots[start : start + len(chunk.ids)] = chunk.ids

    def context(self, chunk: Chunk, offset: int) -> "array[int]":
        """The tokens that the chunk's token `offset` attends to, itself included, as the arena has them."""
        return self._slots[chunk.extent.start : chunk.extent.start + chunk.start + offset + 1]
