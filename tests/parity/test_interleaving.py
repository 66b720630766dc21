"""Any interleaving of sessions gives exactly what each of them gives alone.

A state machine extends, truncates and closes sessions and runs steps in any order, in an arena so small that sessions
push each other out, with a token budget so small that most extensions are cut into chunks. What it reads is compared
with a solo run: the same ids in one piece, in an arena of their own. On every ComputePath; and by the kernels also with
weights that need float32, which are taken layer by layer.
"""

from array import array
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from guardwire_server.core.kv_arena import KvArena
from guardwire_server.core.scheduler import Scheduler, SchedulerLimits
from guardwire_server.core.step_plan import Read
from guardwire_server.core.verdict import Verdict
from guardwire_server.model.backbone import Backbone
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.stream_backend import TorchStreamBackend
from guardwire_server.model.stream_guard import StreamGuard
from tests.model.checkpoints import write_stream_checkpoint
from tests.parity.compute_paths import COMPUTE_PATHS, ComputePath
from tests.parity.precision import Precision

ARENA_TOKENS = 256
MAX_SEQUENCE_TOKENS = 256
MAX_SESSIONS = 6
NUM_TOKEN_IDS = 400

LIMITS = SchedulerLimits(max_num_batched_tokens=24, max_num_seqs=4, short_extend_tokens=6)

READS = st.sampled_from((Read.NOTHING, Read.RESPONSE, Read.RESPONSE, Read.RESPONSE, Read.QUERY))
TOKENS = st.lists(st.tuples(st.integers(0, NUM_TOKEN_IDS - 1), READS), min_size=1, max_size=70)


@dataclass(frozen=True)
class Computation:
    """A path, and what the weights are stored as."""

    path: ComputePath
    stored_dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        return f"{self.path}-of-{self.stored_dtype}"

    def backend(self, num_slots: int) -> TorchStreamBackend:
        """A backend of its own, whose arena nobody has written yet: who reads such a slot is found out."""
        guard = deepcopy(tiny_guard(self.stored_dtype)).to(self.path.dtype)  # a backend takes its model over
        backbone = Backbone(guard.model, num_slots, self.path.kernels(), self.path.kv_dtype)
        backend = TorchStreamBackend(guard, backbone)
        assert self.path.is_taken_by(backend)
        backbone.kv.keys.fill_(torch.nan)
        backbone.kv.values.fill_(torch.nan)
        return backend


COMPUTATIONS = (*map(Computation, COMPUTE_PATHS), Computation(COMPUTE_PATHS[0], torch.float32))


@cache
def tiny_guard(stored_dtype: torch.dtype) -> StreamGuard:
    """A model of two layers."""
    with TemporaryDirectory() as directory:
        path = write_stream_checkpoint(
            Path(directory) / "tiny", hidden=32, head_dim=32, guard_inner=16, dtype=stored_dtype
        )
        return load_stream(open_checkpoint(str(path)), torch.device("cpu"), torch.float32)


class Run:
    """A scheduler with a backend; deals readings out by sequence and position."""

    def __init__(self, computation: Computation, num_roots: int, root_tokens: int, limits: SchedulerLimits) -> None:
        self.scheduler = Scheduler(KvArena(num_roots, root_tokens), limits)
        self._backend = computation.backend(self.scheduler.arena_tokens)

    def step(self) -> list[tuple[int, int, int, Verdict]]:
        """One step: (sequence, position, Read code, verdict) of all that it read."""
        plan = self.scheduler.schedule()
        assert plan.chunks, "a step with work pending makes progress"
        assert plan.num_tokens <= LIMITS.max_num_batched_tokens or len(plan.chunks) == 1
        readings = self._backend.step(plan)
        self.scheduler.complete(plan)
        sources = {Read.RESPONSE: readings.responses, Read.QUERY: readings.queries}
        num_taken = dict.fromkeys(sources, 0)
        dealt: list[tuple[int, int, int, Verdict]] = []
        for chunk in plan.chunks:
            for offset, read in enumerate(map(Read, chunk.reads)):
                if read in sources:
                    dealt.append((chunk.seq_id, chunk.start + offset, read, sources[read][num_taken[read]]))
                    num_taken[read] += 1
        assert {read: len(source) for read, source in sources.items()} == num_taken
        return dealt


def solo_verdicts(computation: Computation, tokens: Sequence[tuple[int, Read]]) -> dict[int, Verdict]:
    """By position, what a session gives that is alone, whole from the beginning."""
    run = Run(computation, 1, MAX_SEQUENCE_TOKENS, SchedulerLimits(max_num_batched_tokens=MAX_SEQUENCE_TOKENS))
    run.scheduler.add(0)
    ids, reads = zip(*tokens, strict=True)
    run.scheduler.extend(0, array("i", ids), bytes(reads))
    return {position: verdict for _, position, _, verdict in run.step()}


@dataclass
class SessionHistory:
    """A session's tokens, and the verdicts on them; `branches` are those that a truncation ended."""

    tokens: list[tuple[int, Read]] = field(default_factory=list)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    branches: list[tuple[list[tuple[int, Read]], dict[int, Verdict]]] = field(default_factory=list)
    epoch: int = 0

    def end_branch(self) -> None:
        if self.verdicts:
            self.branches.append((list(self.tokens), dict(self.verdicts)))


class InterleavingMachine(RuleBasedStateMachine):
    def __init__(self, computation: Computation) -> None:
        super().__init__()
        self.computation = computation
        self.run_ = Run(computation, 1, ARENA_TOKENS, LIMITS)
        self.sessions: dict[int, SessionHistory] = {}
        self.closed: list[SessionHistory] = []
        self.num_opened = 0

    @precondition(lambda self: len(self.sessions) < MAX_SESSIONS)
    @rule(tokens=TOKENS)
    def open(self, tokens: list[tuple[int, Read]]) -> None:
        seq_id = self.num_opened
        self.num_opened += 1
        self.run_.scheduler.add(seq_id)
        self.sessions[seq_id] = SessionHistory()
        self.extend_session(seq_id, tokens)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), tokens=TOKENS)
    def extend(self, data: st.DataObject, tokens: list[tuple[int, Read]]) -> None:
        self.extend_session(self.draw_session(data), tokens)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), token=st.tuples(st.integers(0, NUM_TOKEN_IDS - 1), READS))
    def extend_by_one(self, data: st.DataObject, token: tuple[int, Read]) -> None:
        self.extend_session(self.draw_session(data), [token])

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        seq_id = self.draw_session(data)
        session = self.sessions[seq_id]
        num_kept = data.draw(st.integers(0, len(session.tokens)), label="num_kept")
        session.end_branch()
        session.epoch += 1
        self.run_.scheduler.truncate(seq_id, num_kept, session.epoch)
        del session.tokens[num_kept:]
        session.verdicts = {at: verdict for at, verdict in session.verdicts.items() if at < num_kept}

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        seq_id = self.draw_session(data)
        self.run_.scheduler.remove(seq_id)
        session = self.sessions.pop(seq_id)
        session.end_branch()
        self.closed.append(session)

    @precondition(lambda self: self.run_.scheduler.has_work)
    @rule(max_steps=st.integers(1, 4))
    def step(self, max_steps: int) -> None:
        for _ in range(max_steps):
            if self.run_.scheduler.has_work:
                self.run_step()

    @invariant()
    def nothing_is_pending_that_was_read(self) -> None:
        if not self.run_.scheduler.has_work:
            for session in self.sessions.values():
                read = {at for at, (_, code) in enumerate(session.tokens) if code != Read.NOTHING}
                assert session.verdicts.keys() == read

    def teardown(self) -> None:
        while self.run_.scheduler.has_work:
            self.run_step()
        self.nothing_is_pending_that_was_read()
        for session in (*self.sessions.values(), *self.closed):
            session.end_branch()
            for tokens, verdicts in session.branches:
                compare(verdicts, solo_verdicts(self.computation, tokens), self.computation.path.precision)

    def draw_session(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.sessions)), label="session")

    def extend_session(self, seq_id: int, tokens: list[tuple[int, Read]]) -> None:
        session = self.sessions[seq_id]
        tokens = tokens[: MAX_SEQUENCE_TOKENS - len(session.tokens)]
        ids, reads = array("i", (token_id for token_id, _ in tokens)), bytes(read for _, read in tokens)
        self.run_.scheduler.extend(seq_id, ids, reads)
        session.tokens += tokens

    def run_step(self) -> None:
        for seq_id, position, read, verdict in self.run_.step():
            session = self.sessions[seq_id]
            assert session.tokens[position][1] == read
            assert position not in session.verdicts, "a position is read once"
            session.verdicts[position] = verdict


def compare(verdicts: dict[int, Verdict], solo: dict[int, Verdict], precision: Precision) -> None:
    """Labels equal, ties aside; probabilities within the tolerance."""
    for position, verdict in verdicts.items():
        alone = solo[position]
        told, expected = _row(verdict), _row(alone)
        assert np.abs(told - expected).max() <= precision.tolerance
        highest = np.sort(expected)[::-1]
        if highest[0] - highest[1] > precision.tie:
            assert verdict.risk_level is alone.risk_level
        if verdict.category is not alone.category:  # categories that are no tie differ in probability too
            assert verdict.risk_level is not alone.risk_level or (
                abs(verdict.category_probability - alone.category_probability) <= precision.tie
            )


def _row(verdict: Verdict) -> "np.typing.NDArray[np.float64]":
    probabilities = verdict.probabilities
    return np.array((probabilities.safe, probabilities.controversial, probabilities.unsafe))


SETTINGS = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # to make a failing example smaller takes minutes: add Phase.shrink
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("computation", COMPUTATIONS, ids=str)
def test_any_interleaving(computation: Computation) -> None:
    class Machine(InterleavingMachine):
        def __init__(self) -> None:
            super().__init__(computation)

    run_state_machine_as_test(Machine, settings=SETTINGS)


def test_the_arena_is_small_enough_to_evict() -> None:
    run = Run(COMPUTATIONS[-1], 1, ARENA_TOKENS, LIMITS)
    for seq_id in range(MAX_SESSIONS):
        run.scheduler.add(seq_id)
        run.scheduler.extend(seq_id, array("i", range(70)), bytes((Read.RESPONSE,)) * 70)
    while run.scheduler.has_work:
        run.step()
    assert run.scheduler.num_evictions
