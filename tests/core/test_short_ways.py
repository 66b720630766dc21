"""The short ways of a session do what its events do: two sessions in step, one of which takes them wherever it may."""

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guardwire_server.core import events as ev
from guardwire_server.core.policy import Policy
from tests.core.fakes import FIRST_CHARACTER, IM_END, NEWLINE, THINK, ids, opening
from tests.core.simulated_engine import LIMITS, Stream
from tests.core.strategies import STATEFUL, policies

tokens = st.sampled_from((THINK, NEWLINE, IM_END, *range(FIRST_CHARACTER, FIRST_CHARACTER + 12)))
options = st.fixed_dictionaries(
    {
        "context_overflow": st.sampled_from(ev.ContextOverflow),
        "update_mode": st.sampled_from(ev.UpdateMode),
        "resume_from": st.sampled_from((0, 0, 3)),
        "end_on_block": st.booleans(),
        "observe_only": st.booleans(),
    }
)


class ShortWaysMachine(RuleBasedStateMachine):
    """Whatever happens, happens to both."""

    @initialize(policy=policies(), chosen=options, max_context_tokens=st.sampled_from((24, 40, 200)))
    def begin(self, policy: Policy, chosen: dict[str, object], max_context_tokens: int) -> None:
        limits = replace(LIMITS, max_context_tokens=max_context_tokens)
        self.streams = (Stream(limits), Stream(limits, short_ways=True))
        self.send(replace(opening("hey", policy), **chosen))  # type: ignore[arg-type]

    def send(self, event: ev.Event) -> None:
        for stream in self.streams:
            if stream.ends:
                assert stream.session.handle(event, stream.now_s) == []
            else:
                stream.send(event)

    def is_open(self) -> bool:
        return not self.streams[0].ends

    @precondition(is_open)
    @rule(token_id=tokens)
    def push_one(self, token_id: int) -> None:
        self.send(ev.TokensPushed(ids(token_id)))

    @precondition(is_open)
    @rule(token_ids=st.lists(tokens, max_size=4))
    def push(self, token_ids: list[int]) -> None:
        self.send(ev.TokensPushed(ids(*token_ids)))

    @precondition(is_open)
    @rule(num_tokens_back=st.integers(0, 3))
    def roll_back(self, num_tokens_back: int) -> None:
        self.send(ev.RollbackRequested(max(0, self.streams[0].session._transcript.num_pushed - num_tokens_back)))

    @precondition(is_open)
    @rule()
    def add_user_turn(self) -> None:
        self.send(ev.UserTurnAdded("ab"))

    @precondition(is_open)
    @rule()
    def finish(self) -> None:
        self.send(ev.FinishRequested())

    @rule(seconds=st.sampled_from((0.1, 3.0)))
    def wait(self, seconds: float) -> None:
        for stream in self.streams:
            stream.now_s += seconds
        self.send(ev.TimePassed())

    @rule(num_tokens=st.sampled_from((1, 1, 1, 30)))
    def step(self, num_tokens: int) -> None:
        for stream in self.streams:
            while stream.engine.inbox:
                stream.engine.apply()
            stream.engine.judge(num_tokens)

    @rule()
    def deliver(self) -> None:
        for stream in self.streams:
            if stream.engine.outbox and stream.ends:
                stream.engine.outbox.popleft()
            elif stream.engine.outbox:
                stream.deliver()

    @invariant()
    def nothing_tells_them_apart(self) -> None:
        long, short = self.streams
        assert long.updates == short.updates
        assert [repr(end.error) for end in long.ends] == [repr(end.error) for end in short.ends]
        assert list(long.engine.inbox) == list(short.engine.inbox)
        assert long.session.state is short.session.state
        assert long.session.wants_input == short.session.wants_input
        assert vars(long.session)["_idle_since_s"] == vars(short.session)["_idle_since_s"]


ShortWaysMachine.TestCase.settings = STATEFUL
TestShortWays = ShortWaysMachine.TestCase


def test_the_short_ways_are_taken() -> None:
    stream = Stream(short_ways=True)
    stream.send(opening("hey"))
    stream.settle()
    for number in range(40):
        stream.send(ev.TokensPushed(ids(FIRST_CHARACTER + number)))
        stream.settle()
    assert stream.num_short_ways > 40, "all pushes and the verdicts that are SAFE"


def test_a_resumed_stream_takes_them_from_where_it_resumes() -> None:
    stream = Stream(short_ways=True)
    stream.send(replace(opening("hey"), resume_from=3))
    stream.settle()
    for number in range(40):
        stream.send(ev.TokensPushed(ids(FIRST_CHARACTER + number)))
        stream.settle()
    assert stream.num_short_ways > 40
    assert [update.start_index for update in stream.updates if isinstance(update, ev.TokenVerdicts)] == list(
        range(3, 40)
    )
