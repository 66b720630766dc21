"""A sequence as the scheduler sees it: its tokens, and how far the model has seen them."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, Read, new_tuple

_SINGLE = tuple(bytes((read,)) for read in Read)


@dataclass(slots=True)
class Sequence:
    """Owner: the scheduler. Invariant: num_cached <= num_done <= len(ids), and extent is None only if num_cached is 0.

    `is_long`: whether what it waits for was long when it took its place; the rest of a long one is no short one.
    `num_cached` tokens have their keys and values in the arena. `num_done` went through the model once; after an
    eviction these are more. `waits_for` is the number of tokens it had when it took its place in the order of waiting.
    """

    seq_id: int
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    reads: bytearray = field(default_factory=bytearray)
    num_cached: int = 0
    num_done: int = 0
    waits_for: int = 0
    is_long: bool = False
    epoch: int = 0
    extent: Extent | None = None

    @property
    def num_pending(self) -> int:
        """Tokens that are not cached."""
        return len(self.ids) - self.num_cached

    @property
    def num_copyable(self) -> int:
        """Leading tokens that may be copied instead of computed: up to the first that is to be read, or the last."""
        unread = self.num_done
        while unread < len(self.ids) - 1 and not self.reads[unread]:
            unread += 1
        return unread

    def begin_wait(self, short_tokens: int) -> None:
        """Takes note of what it waits for from now on; it is long beyond `short_tokens`."""
        self.waits_for = len(self.ids)
        self.is_long = len(self.ids) - self.num_cached > short_tokens

    def truncate(self, num_tokens: int, epoch: int) -> None:
        """Forgets the tokens from `num_tokens` on; its chunks carry `epoch` from now on."""
        del self.ids[num_tokens:]
        del self.reads[num_tokens:]
        self.num_cached = min(self.num_cached, num_tokens)
        self.num_done = min(self.num_done, num_tokens)
        self.epoch = epoch

    def note_done(self, start: int, stop: int) -> int:
        """Takes note that the tokens `start` to `stop` - 1 are cached now; returns how many had been before."""
        self.num_cached = stop
        if start == self.num_done:  # by far the most frequent
            self.num_done = stop
            return 0
        num_again = max(0, min(stop, self.num_done) - start)
        self.num_done = max(self.num_done, stop)
        return num_again

    def next_chunk(self, num_tokens: int) -> Chunk:
        """The next `num_tokens` tokens; readings that were handed out before are not taken again."""
        assert self.extent is not None
        start, stop = self.num_cached, self.num_cached + num_tokens
        if num_tokens == 1 and self.num_done <= start:  # by far the most frequent
            read = _SINGLE[self.reads[start]]
            return new_tuple(Chunk, (self.seq_id, self.epoch, start, self.ids[start:stop], read, self.extent))
        reads = bytes(self.reads[start:stop])
        if self.num_done > start:
            num_known = min(self.num_done - start, num_tokens)
            reads = bytes(num_known) + reads[num_known:]
        return Chunk(self.seq_id, self.epoch, start, self.ids[start:stop], reads, self.extent)


def order_of_service(
    sequences: Iterable[Sequence], budget: int, short_tokens: int, long_share: float
) -> list[tuple[Sequence, int, bool]]:
    """Waiting sequences in the order of service, a bound on what each takes, and whether it is a long one.

    Args:
        sequences: The longest waiting first.
        budget: Tokens of a step.
        short_tokens: Up to so many pending tokens go before more.
        long_share: The part of the budget, 0 to 1, that the longest waiting gets at least.
    """
    in_order = list(sequences)
    if not any([each.is_long or len(each.ids) - each.num_cached > short_tokens for each in in_order]):  # noqa: C419
        return [(each, budget, False) for each in in_order]  # by far the most frequent: a list is checked fastest
    waiting = [(each, each.num_pending, each.is_long or each.num_pending > short_tokens) for each in in_order]
    (head, _, is_long), others = waiting[0], waiting[1:]
    short = [(each, budget, is_long) for each, num_pending, is_long in others if num_pending <= short_tokens]
    long = [(each, budget, is_long) for each, num_pending, is_long in others if num_pending > short_tokens]
    demand = sum(num_pending for _, num_pending, _ in others if num_pending <= short_tokens)
    head_tokens = max(short_tokens, int(budget * long_share), budget - demand)
    return [(head, head_tokens, is_long), *short, *long]
