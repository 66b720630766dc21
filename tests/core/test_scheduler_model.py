"""The scheduler against a model of sequences, its plans carried out on an arena of token ids."""

import itertools
from array import array
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardwire_server.core.kv_arena import KvArena
from guardwire_server.core.scheduler import Scheduler, SchedulerLimits
from guardwire_server.core.step_plan import Chunk, Read, StepPlan
from tests.core.simulated_arena import SimulatedArena
from tests.core.strategies import STATEFUL

ROOT = 256
reads_of_tokens = st.sampled_from((Read.NOTHING, Read.RESPONSE, Read.RESPONSE, Read.QUERY))


@dataclass
class ModelSequence:
    """What must be true of a sequence: its tokens, how many were seen since it last lost its room, and ever."""

    ids: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    num_cached: int = 0
    num_done: int = 0
    epoch: int = 0


class SchedulerMachine(RuleBasedStateMachine):
    """Sequences come, grow, shrink and go, while steps are done, in an arena that is far too small for them."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences: dict[int, ModelSequence] = {}
        self.waits_for: dict[int, int] = {}  # in the order of waiting
        self.retired: dict[int, list[int]] = {}
        self.num_reused = 0
        self.num_added = self.num_tokens = self.num_losses = 0

    @initialize(
        num_roots=st.integers(1, 3), budget=st.integers(1, 160), max_seqs=st.integers(1, 6), short=st.integers(1, 24)
    )
    def begin(self, num_roots: int, budget: int, max_seqs: int, short: int) -> None:
        self.limits = SchedulerLimits(budget, max_seqs, short)
        self.scheduler = Scheduler(KvArena(num_roots, ROOT), self.limits)
        self.arena = SimulatedArena(num_roots * ROOT)

    @precondition(lambda self: len(self.sequences) < 6)
    @rule()
    def add(self) -> None:
        self.num_added += 1
        self.scheduler.add(self.num_added)
        self.sequences[self.num_added] = ModelSequence()

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), reads=st.lists(reads_of_tokens, max_size=8), num_more=st.sampled_from((0, 0, 20, 50, 120)))
    def extend(self, data: st.DataObject, reads: list[Read], num_more: int) -> None:
        seq_id, sequence = self.pick(data)
        reads = [*reads, *(Read.RESPONSE,) * num_more][: ROOT - len(sequence.ids)]
        token_ids = range(self.num_tokens, self.num_tokens + len(reads))
        self.num_tokens += len(reads)
        if len(reads) == 1:
            self.scheduler.append([(seq_id, token_ids[0])], reads[0])
        else:
            self.scheduler.extend(seq_id, array("i", token_ids), bytes(reads))
        sequence.ids += token_ids
        sequence.reads += reads
        self.refile(seq_id)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        seq_id, sequence = self.pick(data)
        kept = data.draw(st.integers(0, len(sequence.ids)))
        sequence.epoch += 1
        self.scheduler.truncate(seq_id, kept, sequence.epoch)
        del sequence.ids[kept:]
        del sequence.reads[kept:]
        sequence.num_cached, sequence.num_done = min(sequence.num_cached, kept), min(sequence.num_done, kept)
        self.refile(seq_id)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        seq_id, _ = self.pick(data)
        self.forget(seq_id)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        seq_id, sequence = self.pick(data)
        kept = data.draw(st.integers(0, len(sequence.ids)))
        self.scheduler.retire(seq_id, kept)
        self.retired[seq_id] = sequence.ids[:kept]
        del self.sequences[seq_id]
        self.waits_for.pop(seq_id, None)

    @precondition(lambda self: self.retired and len(self.sequences) < 6)
    @rule(data=st.data(), reads=st.lists(reads_of_tokens, min_size=1, max_size=8))
    def add_one_that_begins_like_a_retired_one(self, data: st.DataObject, reads: list[Read]) -> None:
        ids = data.draw(st.sampled_from(list(self.retired.values())))
        alike = ids[: data.draw(st.integers(0, len(ids)))][: ROOT - len(reads)]
        self.add()
        self.scheduler.extend(self.num_added, array("i", alike), bytes(len(alike)))
        sequence = self.sequences[self.num_added]
        sequence.ids += alike
        sequence.reads += bytes(len(alike))
        self.refile(self.num_added)
        new_ids = range(self.num_tokens, self.num_tokens + len(reads))
        self.num_tokens += len(reads)
        self.scheduler.extend(self.num_added, array("i", new_ids), bytes(reads))
        sequence.ids += new_ids
        sequence.reads += reads
        self.refile(self.num_added)

    @precondition(lambda self: self.waits_for)
    @rule()
    def step(self) -> None:
        plan = self.plan()
        self.arena.carry_out(plan)
        for chunk in plan.chunks:
            self.take(chunk)
        self.scheduler.complete(plan)
        assert self.num_losses <= self.scheduler.num_evictions
        assert self.num_reused == self.scheduler.num_reused_tokens

    @precondition(lambda self: self.waits_for)
    @rule()
    def fail_a_step(self) -> None:
        plan = self.plan()
        self.arena.carry_out(plan)
        for chunk in plan.chunks:
            self.take(chunk)  # what was planned counts, too: evictions, and what was copied
            self.forget(chunk.seq_id)

    @invariant()
    def pending_is_what_is_not_done(self) -> None:
        if not self.num_added:
            return
        assert self.scheduler.has_work == bool(self.waits_for)
        assert self.scheduler.num_sequences == len(self.sequences)
        num_not_done = sum(len(one.ids) - one.num_done for one in self.sequences.values())
        assert self.scheduler.num_pending_tokens >= num_not_done

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.waits_for:
                break
            self.step()
            self.pending_is_what_is_not_done()
        assert all(sequence.num_done == len(sequence.ids) for sequence in self.sequences.values())
        for seq_id in tuple(self.sequences):
            self.forget(seq_id)
        for seq_id in tuple(self.scheduler._sequences):
            self.scheduler.remove(seq_id)
        if self.num_added:
            assert self.scheduler.arena_used == 0

    def plan(self) -> StepPlan:
        """Plans a step and checks what needs no arena."""
        plan = self.scheduler.schedule()
        seq_ids = [chunk.seq_id for chunk in plan.chunks]
        assert 0 < plan.num_tokens <= self.limits.max_num_batched_tokens
        assert len(set(seq_ids)) == len(seq_ids) <= self.limits.max_num_seqs
        assert seq_ids[0] == next(iter(self.waits_for)), "the longest waiting goes first"
        assert {copy.target for copy in plan.copies} <= {chunk.extent for chunk in plan.chunks}
        extents = sorted((chunk.extent.start, chunk.extent.capacity) for chunk in plan.chunks)
        assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(extents))
        return plan

    def take(self, chunk: Chunk) -> None:
        """Checks a chunk against the model: nothing twice, nothing left out, nothing misplaced."""
        sequence = self.sequences[chunk.seq_id]
        if chunk.start < sequence.num_cached:
            self.num_losses += 1  # an eviction: it is read again, from its beginning or from where a retired one ends
            sequence.num_cached = 0
        if chunk.start > sequence.num_cached:
            assert sequence.num_cached == 0, "only a sequence without anything can begin with what another one left"
            assert not any(sequence.reads[sequence.num_done : chunk.start]), "a reading was skipped"
            assert any(ids[: chunk.start] == sequence.ids[: chunk.start] for ids in self.retired.values())
            sequence.num_done = max(sequence.num_done, chunk.start)
            self.num_reused += chunk.start
        stop = chunk.start + len(chunk.ids)
        assert chunk.ids.tolist() == sequence.ids[chunk.start : stop]
        assert chunk.epoch == sequence.epoch
        assert self.arena.context(chunk, len(chunk.ids) - 1).tolist() == sequence.ids[:stop]
        expected = [0 if at < sequence.num_done else sequence.reads[at] for at in range(chunk.start, stop)]
        assert list(chunk.reads) == expected
        sequence.num_cached, sequence.num_done = stop, max(stop, sequence.num_done)
        if sequence.num_done >= self.waits_for[chunk.seq_id]:
            del self.waits_for[chunk.seq_id]
            self.refile(chunk.seq_id)

    def refile(self, seq_id: int) -> None:
        """Who has something to wait for waits, in the place taken when the waiting began."""
        sequence = self.sequences[seq_id]
        if sequence.num_done < len(sequence.ids):
            self.waits_for[seq_id] = min(self.waits_for.get(seq_id, ROOT), len(sequence.ids))
        else:
            self.waits_for.pop(seq_id, None)

    def forget(self, seq_id: int) -> None:
        self.scheduler.remove(seq_id)
        del self.sequences[seq_id]
        self.waits_for.pop(seq_id, None)

    def pick(self, data: st.DataObject) -> tuple[int, ModelSequence]:
        return data.draw(st.sampled_from(sorted(self.sequences.items(), key=lambda item: item[0])))


SchedulerMachine.TestCase.settings = settings(STATEFUL, max_examples=25)
TestSchedulerModel = SchedulerMachine.TestCase
