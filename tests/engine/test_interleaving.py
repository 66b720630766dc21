"""The one oracle: any interleaving of streams gives exactly what each of them gives alone.

What a stream gives alone is `Truth`: verdicts from its own tokens, decisions from its own verdicts.
"""

import asyncio
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardwire_server.core import events as ev
from guardwire_server.core.errors import EngineError
from guardwire_server.core.policy import Policy
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.engine.stream_session import StreamSession
from tests.core.fakes import FIRST_CHARACTER, NEWLINE, THINK, ids, opening
from tests.core.reference import Caller, Truth
from tests.core.strategies import STATEFUL, policies
from tests.engine.fakes import settle
from tests.engine.streams import SESSION_LIMITS, Reader, Server, is_ready

tokens = st.sampled_from((THINK, NEWLINE, *range(FIRST_CHARACTER, FIRST_CHARACTER + 6)))


@dataclass
class Conversation:
    """One stream, its reader and the truth about it."""

    stream: StreamSession
    reader: Reader
    truth: Truth


class InterleavingMachine(RuleBasedStateMachine):
    """Callers, their readers, the device's inbox, its steps and its results all move independently."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.conversations: list[Conversation] = []
        self.server = Server()

    @initialize(num_roots=st.integers(1, 3), budget=st.integers(4, 64), max_seqs=st.integers(1, 4))
    def begin(self, num_roots: int, budget: int, max_seqs: int) -> None:
        limits = SchedulerLimits(budget, max_seqs, short_extend_tokens=min(8, budget))
        self.server = Server(scheduler_limits=limits, num_roots=num_roots)

    @precondition(lambda self: len(self.conversations) < 4)
    @rule(policy=policies(), content=st.text("abc", max_size=20))
    def open(self, policy: Policy, content: str) -> None:
        self.runner.run(self.begin_conversation(Truth(opening(content, policy))))

    @precondition(lambda self: self.conversations)
    @rule(data=st.data(), token_ids=st.lists(tokens, max_size=8))
    def push(self, data: st.DataObject, token_ids: list[int]) -> None:
        one = self.pick(data)
        if one.truth.num_positions + len(token_ids) < SESSION_LIMITS.max_context_tokens and self.may_send(one):
            one.stream.handle(ev.TokensPushed(ids(*token_ids), one.truth.num_pushed))
            one.truth.push(token_ids)

    @precondition(lambda self: self.conversations)
    @rule(data=st.data(), token_ids=st.lists(tokens, min_size=1, max_size=4))
    def push_one_each(self, data: st.DataObject, token_ids: list[int]) -> None:
        for token_id in token_ids:
            one = self.pick(data)
            if one.truth.num_positions + 1 < SESSION_LIMITS.max_context_tokens and self.may_send(one):
                one.stream.push(token_id)
                one.truth.push([token_id])

    @precondition(lambda self: self.conversations)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        one = self.pick(data)
        kept = data.draw(st.integers(one.truth.first_index, one.truth.num_pushed))
        if self.may_send(one):
            one.stream.handle(ev.RollbackRequested(kept))
            one.truth.roll_back(kept)

    @precondition(lambda self: self.conversations)
    @rule(data=st.data())
    def add_user_turn(self, data: st.DataObject) -> None:
        one = self.pick(data)
        if one.truth.num_positions + 20 < SESSION_LIMITS.max_context_tokens and self.may_send(one):
            one.stream.handle(ev.UserTurnAdded("ab"))
            one.truth.add_user_turn("ab")

    @precondition(lambda self: self.conversations)
    @rule(data=st.data())
    def pause_or_go_on_reading(self, data: st.DataObject) -> None:
        may_read = self.pick(data).reader.may_read
        if may_read.is_set():
            may_read.clear()
        else:
            may_read.set()

    @precondition(lambda self: self.conversations)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        one = self.pick(data)
        self.conversations.remove(one)
        self.runner.run(self.leave(one))

    @precondition(lambda self: self.conversations)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        one = self.pick(data)
        self.conversations.remove(one)
        self.runner.run(self.finish_conversation(one))

    @precondition(lambda self: self.server.thread.inbox)
    @rule(num_messages=st.integers(1, 8))
    def apply(self, num_messages: int) -> None:
        for _ in range(min(num_messages, len(self.server.thread.inbox))):
            self.server.thread.apply()

    @precondition(lambda self: self.server.engine.has_work)
    @rule(fails=st.sampled_from((False,) * 9 + (True,)))
    def step(self, fails: bool) -> None:
        self.server.backend.num_failures_to_come = int(fails)
        self.server.thread.step()

    @precondition(lambda self: self.server.thread.outbox)
    @rule()
    def deliver(self) -> None:
        self.server.thread.deliver()

    @invariant()
    def readers_read(self) -> None:
        self.runner.run(settle())

    def teardown(self) -> None:
        for one in tuple(self.conversations):
            self.runner.run(self.finish_conversation(one))
        self.server.thread.run_until_idle()
        assert (self.server.scheduler.num_sequences, self.server.scheduler.arena_used) == (0, 0.0)
        self.runner.close()

    async def begin_conversation(self, truth: Truth) -> None:
        stream = self.server.manager.open()
        stream.handle(truth.opening)
        self.conversations.append(Conversation(stream, Reader(stream), truth))

    async def finish_conversation(self, one: Conversation) -> None:
        one.reader.may_read.set()
        one.stream.handle(ev.FinishRequested())
        self.server.thread.run_until_idle()
        await one.reader.task
        await self.leave(one)
        if one.reader.error is not None:
            assert isinstance(one.reader.error, EngineError), "only a failed step takes a stream away"
            return
        caller = Caller(one.truth.opening.policy)
        for update in one.reader.updates:
            caller.take(update)
        caller.check(one.truth)

    async def leave(self, one: Conversation) -> None:
        async with one.stream:
            one.reader.task.cancel()
            await asyncio.wait([one.reader.task])

    def may_send(self, one: Conversation) -> bool:
        return self.runner.run(is_ready(one.stream))

    def pick(self, data: st.DataObject) -> Conversation:
        return self.conversations[data.draw(st.integers(0, len(self.conversations) - 1))]


InterleavingMachine.TestCase.settings = settings(STATEFUL, max_examples=20, stateful_step_count=50)
TestInterleaving = InterleavingMachine.TestCase
