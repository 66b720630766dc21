"""Which tokens the next engine step takes, and where their keys and values go.

Theory of operation. A sequence is a row of token ids of which a leading part is cached (its keys and values lie in the
arena). Whatever lies beyond is pending. A step takes from each scheduled sequence a chunk of its pending tokens, so
prefill, extension by one token and re-prefill after an eviction are one and the same.

Order: the sequence that has waited longest is served first, so that nobody starves; if it is a long one it leaves the
short ones most of the token budget. Then come all whose pending tokens fit `short_extend_tokens`, because somebody
waits for exactly that token, and then the other long ones share what is left; within each kind the longest waiting goes
first. Where every token costs time, as on a CPU, long ones would hold up the short ones of their step, so what they
take beside short ones is bounded (`long_tokens_beside_short`). A sequence keeps its place until all that it had when it
began to wait is done, however much has come since.

Memory: a sequence that needs a larger extent moves. When the arena is full, the longest idle sequence loses its extent
(it keeps its ids and is read again when it speaks); if none is idle, one that has waited less than the sequence that
needs the room does; where even that would not make the room, nobody does. So the head of the order always gets its
room, nobody can take it away, and every step that has anything to do makes progress.

Prefixes: a sequence that is over can be retired instead of removed. It keeps its extent as long as nobody needs the
room, and a sequence that begins with the same tokens copies their keys and values instead of computing them. Integers
only: no tensors, no clock, no threads.
"""

import itertools
from array import array
from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass

from guardwire_server.core.kv_arena import Extent, KvArena, extent_capacity
from guardwire_server.core.prefix_index import PrefixIndex
from guardwire_server.core.sequence import Sequence, order_of_service
from guardwire_server.core.step_plan import Chunk, Copy, Read, StepPlan


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The size of a step.

    `max_num_batched_tokens`: the token budget of one step. `max_num_seqs`: sequences in one step.
    `short_extend_tokens`: extensions up to this length go before longer ones. `long_share`: the part of the budget,
    0 to 1, that the longest waiting sequence gets at least when it is a long one. `max_retired`: sequences kept for
    their prefixes.
    """

    max_num_batched_tokens: int = 512
    max_num_seqs: int = 256
    short_extend_tokens: int = 64
    long_share: float = 0.25
    max_retired: int = 128


FIRST_RETIRED_ID = -1000
"""Retired sequences are named downwards from here; callers' own ids are above."""


class Scheduler:
    """Owns the sequences and the arena. Thread: the device thread.

    Invariants: a sequence is in `_waiting` exactly while some of its tokens are not done, else in `_idle`; both are
    ordered by how long it has been there. Between `schedule` and `complete` no other method is called.
    """

    def __init__(self, arena: KvArena, limits: SchedulerLimits) -> None:
        self._arena = arena
        self._limits = limits
        self._sequences: dict[int, Sequence] = {}
        self._waiting: dict[int, Sequence] = {}
        self._idle: dict[int, Sequence] = {}
        self._retired = PrefixIndex(limits.max_retired)
        self._retired_ids = itertools.count(FIRST_RETIRED_ID, -1)
        self.long_tokens_beside_short = limits.max_num_batched_tokens
        self.num_evictions = 0
        self.num_reused_tokens = 0
        self.num_reprefilled_tokens = 0  # computed again, since an eviction had taken what was cached

    @property
    def has_work(self) -> bool:
        """Whether any token is pending."""
        return bool(self._waiting)

    @property
    def waiting_ids(self) -> Set[int]:
        """The sequences of which any token is pending; a view."""
        return self._waiting.keys()

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that the next steps have to take, over all waiting sequences."""
        return sum([len(sequence.ids) - sequence.num_cached for sequence in self._waiting.values()])

    @property
    def num_sequences(self) -> int:
        """Sequences that exist, those that are retired left out."""
        return len(self._sequences) - len(self._retired)

    @property
    def arena_tokens(self) -> int:
        """Token slots of the arena."""
        return self._arena.num_tokens

    @property
    def max_sequence_tokens(self) -> int:
        """The longest sequence that the arena can hold."""
        return self._arena.root_tokens

    @property
    def arena_used(self) -> float:
        """Share of the arena in use, 0 to 1."""
        return self._arena.num_used / self._arena.num_tokens

    def add(self, seq_id: int) -> None:
        """Adds an empty sequence."""
        if seq_id in self._sequences:
            raise ValueError(f"sequence {seq_id} exists")
        sequence = Sequence(seq_id)
        self._sequences[seq_id] = self._idle[seq_id] = sequence

    def extend(self, seq_id: int, ids: "array[int]", reads: bytes) -> None:
        """Appends tokens to a sequence; they are pending from now on.

        Raises:
            ValueError: If the sequence would outgrow the largest extent; nothing is appended then.
        """
        sequence = self._sequences[seq_id]
        if len(sequence.ids) + len(ids) > self._arena.root_tokens:
            raise ValueError(f"{len(sequence.ids) + len(ids)} tokens exceed the largest extent")
        if len(ids) != len(reads):
            raise ValueError(f"{len(ids)} ids with {len(reads)} reads")
        sequence.ids.extend(ids)
        sequence.reads += reads
        self._refile(sequence)

    def append(self, tokens: Iterable[tuple[int, int]], read: Read) -> None:
        """Appends tokens to many sequences, (sequence, token) each: the same as `extend` for one after another.

        Raises:
            ValueError: If a sequence would outgrow the largest extent; it and those behind it get nothing then.
        """
        sequences, waiting, max_tokens = self._sequences, self._waiting, self._arena.root_tokens
        for seq_id, token_id in tokens:
            sequence = sequences[seq_id]
            ids = sequence.ids
            if len(ids) >= max_tokens:
                raise ValueError(f"{len(ids) + 1} tokens exceed the largest extent")
            ids.append(token_id)
            sequence.reads.append(read)
            if seq_id not in waiting:
                self._begin_wait(sequence)

    def truncate(self, seq_id: int, num_tokens: int, epoch: int) -> None:
        """Forgets the tokens from `num_tokens` on; chunks planned from now on carry `epoch`."""
        sequence = self._sequences[seq_id]
        sequence.truncate(num_tokens, epoch)
        self._refile(sequence)

    def remove(self, seq_id: int) -> None:
        """Forgets a sequence; an unknown one is passed over, since removal may cross a failure on its way."""
        sequence = self._sequences.pop(seq_id, None)
        if sequence is None:
            return
        self._waiting.pop(seq_id, None)
        self._idle.pop(seq_id, None)
        self._retired.remove(seq_id)
        if sequence.extent:
            self._arena.free(sequence.extent)

    def retire(self, seq_id: int, num_tokens: int) -> None:
        """Ends a sequence whose first `num_tokens` tokens, if they are cached, may be what others begin with.

        Its id is free again.
        """
        sequence = self._sequences[seq_id]
        if sequence.num_cached < num_tokens:
            self.remove(seq_id)
            return
        self.truncate(seq_id, num_tokens, sequence.epoch)
        del self._sequences[seq_id], self._idle[seq_id]
        sequence.seq_id = next(self._retired_ids)
        self._sequences[sequence.seq_id] = self._idle[sequence.seq_id] = sequence
        for dropped in self._retired.add(sequence.seq_id, sequence.ids):
            self.remove(dropped)

    def schedule(self, *, expects_short: bool = False) -> StepPlan:
        """Plans the next step; its chunks' room in the arena is reserved.

        Args:
            expects_short: Whether short extensions are about to come: long ones leave room for them as if they were
                there, so that nobody who is a little late waits for a whole budget of somebody else's.
        """
        limits = self._limits
        copies, chunks = list[Copy](), dict[int, Chunk]()
        budget = limits.max_num_batched_tokens
        order = order_of_service(self._waiting.values(), budget, limits.short_extend_tokens, limits.long_share)
        has_short = expects_short or not all(is_long for _, _, is_long in order)
        long_budget = self.long_tokens_beside_short if has_short else budget
        for sequence, max_tokens, is_long in order:
            if budget <= 0 or len(chunks) >= limits.max_num_seqs:
                break
            left = min(budget, long_budget) if is_long else budget
            has_room = sequence.extent is not None and sequence.extent.capacity >= len(sequence.ids)
            if left <= 0 or not (has_room or self._reserve(sequence, copies, chunks)):
                continue
            num_tokens = len(sequence.ids) - sequence.num_cached  # changes as room is made
            if num_tokens > 1:
                num_tokens = min(left, max_tokens, num_tokens)
            chunks[sequence.seq_id] = sequence.next_chunk(num_tokens)
            budget -= num_tokens
            if is_long:
                long_budget -= num_tokens
        return StepPlan(tuple(copies), tuple(chunks.values()))

    def complete(self, plan: StepPlan) -> None:
        """Takes note that a planned step has been done."""
        sequences, waiting, idle = self._sequences, self._waiting, self._idle
        for seq_id, _, start, ids, _, _ in plan.chunks:
            sequence = sequences[seq_id]
            self.num_reprefilled_tokens += sequence.note_done(start, start + len(ids))
            if sequence.num_done == len(sequence.ids):
                del waiting[seq_id]
                idle[seq_id] = sequence
            elif sequence.num_done >= sequence.waits_for:
                del waiting[seq_id]
                self._begin_wait(sequence)

    def _reserve(self, sequence: Sequence, copies: list[Copy], planned: Collection[int]) -> bool:
        """Finds an extent that holds all the sequence's tokens; False if this step has no room for it."""
        num_tokens = len(sequence.ids)
        if not self._arena.has_room(num_tokens):
            if not self._can_make_room(sequence, planned):
                return False
            self._make_room(sequence, planned)
        extent = self._arena.allocate(num_tokens)
        assert extent is not None
        if sequence.extent:
            copies.append(Copy(sequence.extent, extent, sequence.num_cached))
            self._arena.free(sequence.extent)
        else:
            self._reuse_prefix(sequence, extent, copies)
        sequence.extent = extent
        return True

    def _reuse_prefix(self, sequence: Sequence, extent: Extent, copies: list[Copy]) -> None:
        """Copies what a retired sequence has in common with one that has nothing cached, up to what is to be read."""
        seq_id, num_common = self._retired.longest(sequence.ids)
        if seq_id is None:
            return
        num_tokens = min(num_common, sequence.num_copyable)
        if not num_tokens:
            return
        donor = self._sequences[seq_id]
        assert donor.extent is not None  # without one it would not be in the index
        copies.append(Copy(donor.extent, extent, num_tokens))
        sequence.num_cached = num_tokens
        sequence.num_done = max(sequence.num_done, num_tokens)
        self.num_reused_tokens += num_tokens
        self._retired.touch(seq_id)
        self._idle[seq_id] = self._idle.pop(seq_id)

    def _can_make_room(self, sequence: Sequence, planned: Collection[int]) -> bool:
        """Whether the sequence would fit if all that may lose their extents did; if not, none should."""
        capacity = extent_capacity(len(sequence.ids))
        ahead = itertools.takewhile(lambda other: other is not sequence, self._waiting.values())
        taken: set[int] = set()  # of the arena's aligned pieces of that capacity
        for other in itertools.chain(ahead, (self._sequences[seq_id] for seq_id in planned)):
            if extent := other.extent:
                taken.update(range(extent.start // capacity, (extent.start + extent.capacity - 1) // capacity + 1))
        return len(taken) < self._arena.num_tokens // capacity

    def _make_room(self, sequence: Sequence, planned: Collection[int]) -> None:
        """Takes extents until there is room: the longest idle's, those of the ones that wait least, at last its own."""
        behind = itertools.takewhile(lambda other: other is not sequence, reversed(self._waiting.values()))
        for other in itertools.chain(tuple(self._idle.values()), behind, (sequence,)):
            if self._arena.has_room(len(sequence.ids)):
                return
            if other.seq_id in self._retired:
                self.remove(other.seq_id)
            elif other.extent and other.seq_id not in planned:
                self._arena.free(other.extent)
                other.extent = None
                other.num_cached = 0
                self.num_evictions += 1

    def _refile(self, sequence: Sequence) -> None:
        """Puts a sequence where its tokens say it belongs; a place once taken in the order of waiting is kept."""
        seq_id, num_tokens = sequence.seq_id, len(sequence.ids)
        if sequence.num_done >= num_tokens:
            self._waiting.pop(seq_id, None)
            self._idle.pop(seq_id, None)
            self._idle[seq_id] = sequence
        elif seq_id not in self._waiting:
            self._begin_wait(sequence)
        elif sequence.waits_for > num_tokens:
            sequence.waits_for = num_tokens

    def _begin_wait(self, sequence: Sequence) -> None:
        """Gives a sequence the last place in the order of waiting."""
        self._idle.pop(sequence.seq_id, None)
        self._waiting[sequence.seq_id] = sequence
        sequence.begin_wait(self._limits.short_extend_tokens)
