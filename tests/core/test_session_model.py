"""A session with an engine that is late in every way: what is told at the end is the truth about what was pushed."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardwire_server.core import events as ev
from guardwire_server.core.policy import Policy
from tests.core.fakes import FIRST_CHARACTER, IM_END, NEWLINE, THINK, ids, opening
from tests.core.reference import Caller, Truth
from tests.core.simulated_engine import LIMITS, Stream
from tests.core.strategies import STATEFUL, policies

tokens = st.sampled_from((THINK, NEWLINE, IM_END, *range(FIRST_CHARACTER, FIRST_CHARACTER + 6)))


class SessionMachine(RuleBasedStateMachine):
    """The caller, the engine's two queues and the engine itself move independently."""

    @initialize(policy=policies(), short_ways=st.booleans())
    def begin(self, policy: Policy, short_ways: bool) -> None:
        self.stream = Stream(short_ways=short_ways)
        self.truth = Truth(opening("hey", policy))
        self.caller = Caller(policy)
        self.num_taken = 0
        self.stream.send(self.truth.opening)

    def has_room(self) -> bool:
        return self.truth.num_positions < LIMITS.max_context_tokens - 20

    @precondition(has_room)
    @rule(token_ids=st.lists(tokens, max_size=6), states_index=st.booleans())
    def push(self, token_ids: list[int], states_index: bool) -> None:
        start_index = self.truth.num_pushed if states_index else None
        self.stream.send(ev.TokensPushed(ids(*token_ids), start_index))
        self.truth.push(token_ids)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        kept = data.draw(st.integers(self.truth.first_index, self.truth.num_pushed))
        self.stream.send(ev.RollbackRequested(kept))
        self.truth.roll_back(kept)

    @precondition(has_room)
    @rule(content=st.text("abc", max_size=4))
    def add_user_turn(self, content: str) -> None:
        self.stream.send(ev.UserTurnAdded(content))
        self.truth.add_user_turn(content)

    @precondition(lambda self: self.stream.engine.inbox)
    @rule()
    def apply_a_command(self) -> None:
        self.stream.engine.apply()

    @precondition(lambda self: self.stream.engine.num_pending)
    @rule(num_tokens=st.integers(1, 12))
    def judge(self, num_tokens: int) -> None:
        self.stream.engine.judge(num_tokens)

    @precondition(lambda self: self.stream.engine.outbox)
    @rule()
    def deliver(self) -> None:
        self.stream.deliver()

    @invariant()
    def the_caller_is_told_in_order(self) -> None:
        for update in self.stream.updates[self.num_taken :]:
            self.caller.take(update)
        self.num_taken = len(self.stream.updates)
        assert not self.stream.ends

    def teardown(self) -> None:
        self.stream.send(ev.FinishRequested())
        self.stream.settle()
        for update in self.stream.updates[self.num_taken :]:
            self.caller.take(update)
        assert self.stream.error is None
        self.caller.check(self.truth)


SessionMachine.TestCase.settings = STATEFUL
TestSessionModel = SessionMachine.TestCase
