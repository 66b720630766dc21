import pytest

from guardwire_server.core.kv_arena import KvArena
from guardwire_server.core.scheduler import Scheduler, SchedulerLimits
from guardwire_server.core.step_plan import Read, StepPlan
from tests.core.fakes import ids
from tests.core.simulated_arena import SimulatedArena

LIMITS = SchedulerLimits(max_num_batched_tokens=128, max_num_seqs=8, short_extend_tokens=16, long_share=0.25)


def scheduler(num_roots: int = 4, root_tokens: int = 1024, limits: SchedulerLimits = LIMITS) -> Scheduler:
    return Scheduler(KvArena(num_roots, root_tokens), limits)


def push(target: Scheduler, seq_id: int, num_tokens: int, read: Read = Read.RESPONSE) -> None:
    """Appends tokens, adding the sequence if it is new."""
    if seq_id not in target._sequences:
        target.add(seq_id)
    target.extend(seq_id, ids(*(seq_id,) * num_tokens), bytes((read,)) * num_tokens)


def step(target: Scheduler) -> dict[int, int]:
    """Does a step; tells how many tokens each sequence got, in the order of service."""
    plan = target.schedule()
    target.complete(plan)
    return {chunk.seq_id: len(chunk.ids) for chunk in plan.chunks}


def run_until_idle(target: Scheduler, max_steps: int) -> int:
    """Steps until nothing is pending; returns how many steps it took."""
    for num_steps in range(max_steps):
        if not target.has_work:
            return num_steps
        assert step(target)
    raise AssertionError(f"not done after {max_steps} steps")


def test_nothing_to_do() -> None:
    empty = scheduler()
    empty.add(1)
    assert not empty.has_work
    assert empty.schedule() == StepPlan((), ())
    assert (empty.num_sequences, empty.num_pending_tokens, empty.arena_used) == (1, 0, 0.0)


def test_a_chunk_carries_ids_reads_and_epoch() -> None:
    target = scheduler()
    target.add(7)
    target.extend(7, ids(1, 2, 3), bytes((Read.NOTHING, Read.QUERY, Read.RESPONSE)))
    target.truncate(7, 2, epoch=5)
    target.extend(7, ids(9), bytes((Read.LOGITS,)))
    (chunk,) = target.schedule().chunks
    assert (chunk.seq_id, chunk.epoch, chunk.start, chunk.ids) == (7, 5, 0, ids(1, 2, 9))
    assert chunk.reads == bytes((Read.NOTHING, Read.QUERY, Read.LOGITS))


def test_the_head_first_then_the_short_then_the_long() -> None:
    target = scheduler()
    for seq_id, num_tokens in ((1, 300), (2, 200), (3, 4), (4, 16), (5, 17)):
        push(target, seq_id, num_tokens)
    assert step(target) == {1: 108, 3: 4, 4: 16}
    assert step(target) == {1: 128}


def test_short_ones_leave_the_long_head_its_share() -> None:
    target = scheduler()
    push(target, 0, 500)
    for seq_id in range(1, 8):
        push(target, seq_id, 16)
    assert step(target) == {0: 32, 1: 16, 2: 16, 3: 16, 4: 16, 5: 16, 6: 16}


def test_long_ones_take_no_more_than_their_share_beside_short_ones() -> None:
    target = scheduler()
    target.long_tokens_beside_short = 24
    push(target, 1, 40)
    push(target, 2, 300)
    push(target, 3, 1)
    assert step(target) == {1: 24, 3: 1}
    push(target, 3, 1)
    assert step(target) == {1: 16, 3: 1, 2: 8}, "the rest of a long one is no short one"
    assert step(target) == {2: 128}, "alone, it takes all there is"
    push(target, 3, 1)
    assert step(target) == {2: 24, 3: 1}


def test_long_ones_leave_room_for_short_ones_that_are_about_to_come() -> None:
    target = scheduler()
    target.long_tokens_beside_short = 24
    push(target, 1, 300)
    plan = target.schedule(expects_short=True)
    assert [len(chunk.ids) for chunk in plan.chunks] == [24]
    target.complete(plan)
    assert step(target) == {1: 128}


def test_no_more_sequences_than_a_step_takes() -> None:
    target = scheduler()
    for seq_id in range(12):
        push(target, seq_id, 1)
    assert list(step(target)) == list(range(8))
    assert list(step(target)) == [8, 9, 10, 11]


def test_a_place_is_kept_until_what_it_waited_for_is_done() -> None:
    target = scheduler()
    push(target, 1, 300)
    push(target, 2, 300)
    for _ in range(3):
        assert next(iter(step(target))) == 1
        push(target, 1, 100)
    assert next(iter(step(target))) == 2


def test_a_firehose_starves_nobody() -> None:
    limits = SchedulerLimits(max_num_batched_tokens=64, max_num_seqs=2, short_extend_tokens=16)
    target = scheduler(root_tokens=4096, limits=limits)
    push(target, 1, 64)
    push(target, 2, 300)
    push(target, 3, 1)
    for _ in range(12):
        push(target, 1, 100)  # more than a step takes
        step(target)
    assert target._sequences[2].num_pending == target._sequences[3].num_pending == 0


def test_more_short_ones_than_the_budget_all_get_their_turn() -> None:
    limits = SchedulerLimits(max_num_batched_tokens=8, max_num_seqs=4, short_extend_tokens=8)
    target = scheduler(limits=limits)
    for seq_id in range(20):
        push(target, seq_id, 3)
    assert run_until_idle(target, max_steps=20) <= 10


def test_an_arena_far_too_small_still_finishes_everything() -> None:
    target = scheduler(num_roots=1, root_tokens=128)
    for seq_id in range(6):
        push(target, seq_id, 100)
    for seq_id in range(6):
        push(target, seq_id, 28)
    run_until_idle(target, max_steps=30)
    assert target.num_evictions == 5


def test_the_longest_idle_loses_its_extent_first() -> None:
    target = scheduler(num_roots=1, root_tokens=256)
    for seq_id in (1, 2, 3, 4):
        push(target, seq_id, 60)
        step(target)
    push(target, 1, 1)
    step(target)
    push(target, 5, 60)
    step(target)
    held = {seq_id for seq_id, sequence in target._sequences.items() if sequence.extent}
    assert held == {1, 3, 4, 5}
    assert target.num_evictions == 1


def test_a_rollback_is_a_sign_of_life() -> None:
    target = scheduler(num_roots=1, root_tokens=128)
    for seq_id in (1, 2):
        push(target, seq_id, 60)
        step(target)
    target.truncate(1, 50, epoch=1)
    push(target, 3, 60)
    step(target)
    assert {seq_id for seq_id, sequence in target._sequences.items() if sequence.extent} == {1, 3}


def test_a_rollback_of_what_was_waited_for_ends_the_waiting() -> None:
    target = scheduler()
    push(target, 1, 300)
    step(target)
    target.truncate(1, 200, epoch=1)
    assert step(target) == {1: 72}
    assert not target.has_work


def test_readings_are_not_handed_out_again_after_an_eviction() -> None:
    target = scheduler(num_roots=1, root_tokens=64)
    push(target, 1, 40)
    step(target)
    push(target, 2, 40)
    step(target)
    push(target, 1, 2)
    (chunk,) = target.schedule().chunks
    assert (chunk.start, chunk.reads) == (0, bytes(40) + bytes((Read.RESPONSE,)) * 2)


def test_the_head_takes_the_room_of_those_that_wait_less() -> None:
    target = scheduler(num_roots=1, root_tokens=128, limits=SchedulerLimits(max_num_batched_tokens=32, long_share=0.5))
    push(target, 1, 60)
    push(target, 2, 60)
    step(target)
    push(target, 1, 40)
    while target.has_work and target._sequences[1].num_pending:
        assert 1 in step(target) or 2 in step(target)
    run_until_idle(target, max_steps=20)


def test_nobody_is_evicted_in_vain() -> None:
    target = scheduler(num_roots=1, root_tokens=256)
    push(target, 1, 60)
    step(target)
    push(target, 2, 20)
    push(target, 3, 200)
    assert step(target) == {2: 20}, "the third cannot have the whole arena beside the second"
    assert target.num_evictions == 0
    assert step(target) == {3: 128}
    assert target.num_evictions == 2


def test_who_is_planned_already_keeps_its_room() -> None:
    target = scheduler(num_roots=1, root_tokens=256)
    for seq_ids in ((4, 5), (1,), (3,)):  # in this order they lie in the arena
        for seq_id in seq_ids:
            push(target, seq_id, 20)
        step(target)
    for seq_id, num_tokens in ((1, 10), (2, 100), (4, 30), (5, 30), (3, 3)):
        push(target, seq_id, num_tokens)
    assert step(target) == {1: 10, 3: 3, 2: 100}
    held = {seq_id for seq_id, sequence in target._sequences.items() if sequence.extent}
    assert (held, target.num_evictions) == ({1, 2, 3}, 2)


def test_a_sequence_that_grows_moves_with_what_it_has() -> None:
    arena = SimulatedArena(1024)
    target = scheduler(num_roots=1)
    for seq_id, num_tokens in ((1, 60), (2, 60), (1, 60)):
        push(target, seq_id, num_tokens)
        plan = target.schedule()
        arena.carry_out(plan)
        target.complete(plan)
    (copy,) = plan.copies
    assert (copy.num_tokens, copy.target.capacity) == (60, 128)
    assert arena.context(plan.chunks[0], 59) == ids(*(1,) * 120)


def test_removing_frees_the_extent_and_an_unknown_one_is_passed_over() -> None:
    target = scheduler()
    push(target, 1, 10)
    push(target, 2, 10)
    step(target)
    target.remove(1)
    target.remove(1)
    assert (target.num_sequences, target.arena_used) == (1, 64 / 4096)


def test_what_a_sequence_cannot_take() -> None:
    target = scheduler(num_roots=1, root_tokens=64)
    push(target, 1, 60)
    with pytest.raises(ValueError, match="exceed the largest extent"):
        push(target, 1, 5)
    with pytest.raises(ValueError, match="2 ids with 1 reads"):
        target.extend(1, ids(1, 2), b"\1")
    with pytest.raises(ValueError, match="exists"):
        target.add(1)
    assert target.num_pending_tokens == 60


def test_a_token_beyond_the_largest_extent_is_refused() -> None:
    target = scheduler(num_roots=1)
    push(target, 1, 1024)
    with pytest.raises(ValueError, match="exceed the largest extent"):
        target.append([(1, 5)], Read.RESPONSE)


def test_the_id_of_a_retired_sequence_is_free_again() -> None:
    target = scheduler()
    for _ in range(3):
        push(target, 1, 40, Read.NOTHING)
        step(target)
        target.retire(1, 40)
        assert target.num_sequences == 0
    assert target.num_reused_tokens == 2 * 39, "the last token is computed, since something waits for it"
    assert len(target._sequences) == 1


def test_what_a_prefix_spares_costs_no_budget() -> None:
    target = scheduler(num_roots=16, limits=SchedulerLimits(512, 64, 64))
    common = range(100, 500)
    target.add(0)
    target.extend(0, ids(*common, 1), bytes(401))
    run_until_idle(target, 9)
    target.retire(0, 400)
    for seq_id in range(1, 9):
        target.add(seq_id)
        target.extend(seq_id, ids(*common, *(seq_id * 1000 + n for n in range(50))), bytes(449) + bytes((Read.LOGITS,)))
    assert step(target) == dict.fromkeys(range(1, 9), 50)


def test_who_loses_its_room_is_read_again_in_the_same_step() -> None:
    target = scheduler(num_roots=2, root_tokens=256, limits=SchedulerLimits(512, 8, 16))
    for seq_id, num_tokens in ((1, 100), (2, 100), (3, 100), (4, 60)):
        push(target, seq_id, num_tokens)
    run_until_idle(target, 9)
    for seq_id, num_tokens in ((1, 100), (2, 1), (3, 1), (4, 1)):  # the first moves to an extent of 256
        push(target, seq_id, num_tokens)
    assert step(target)[3] == 101
