"""What is counted as a tenant's tokens, and when."""

from array import array
from collections.abc import Iterator

import pytest

from guardwire_server.access.metering import Meter, MeteredConversations, MeteredRenderer
from guardwire_server.access.rules import Tenant, TenantLimits
from guardwire_server.access.usage import TenantUsage, current_usage
from guardwire_server.core.errors import InvalidField, Overloaded
from guardwire_server.core.events import (
    CallerEvent,
    FinishRequested,
    OpenRequested,
    RenderedTurn,
    RollbackRequested,
    TextPushed,
    Thinking,
    TokensPushed,
    UserTurnAdded,
)
from guardwire_server.core.policy import BUILT_IN_POLICIES
from guardwire_server.core.ports import LONG_TEXT_CHARS
from guardwire_server.core.verdict import Message, Role
from tests.core.fakes import FakeRenderer, ids

BURST = 100_000


def metered(burst: int = BURST) -> TenantUsage:
    return TenantUsage(Tenant("acme", TenantLimits(tokens_per_s=1.0, burst_tokens=burst)), lambda: 0.0)


def num_taken(usage: TenantUsage) -> int:
    return BURST - usage.take_some_tokens(BURST)


def conversation(content: str) -> tuple[Message, ...]:
    return (Message(Role.USER, content),)


def opening(prompt: "tuple[Message, ...] | array[int]") -> OpenRequested:
    return OpenRequested(prompt, BUILT_IN_POLICIES[0])


@pytest.fixture
def serving() -> Iterator[TenantUsage]:
    """The usage of the tenant whose call the test is."""
    usage = metered()
    token = current_usage.set(usage)
    yield usage
    current_usage.reset(token)


@pytest.mark.parametrize("content", ["Hello", "x" * (LONG_TEXT_CHARS + 1)], ids=["short", "long"])
async def test_prompts_are_rendered_once_and_counted(content: str) -> None:
    usage, renderer = metered(), FakeRenderer()
    event = await Meter(usage, renderer).take_prompt(opening(conversation(content)))
    expected = renderer.prompt(conversation(content), Thinking.OFF)
    assert isinstance(event, OpenRequested)
    assert event.prompt == expected
    assert num_taken(usage) == len(expected.token_ids)


async def test_templated_prompts_are_counted_as_they_are() -> None:
    usage, event = metered(), opening(ids(1, 20, 2))
    assert await Meter(usage, FakeRenderer()).take_prompt(event) is event
    assert num_taken(usage) == 3


async def test_rendered_prompts_are_counted() -> None:
    usage, event = metered(), OpenRequested(RenderedTurn(ids(1, 20, 21, 2), 3), BUILT_IN_POLICIES[0])
    assert await Meter(usage, FakeRenderer()).take_prompt(event) == event
    assert num_taken(usage) == 4


@pytest.mark.parametrize(
    ("event", "num_tokens"),
    [
        (TokensPushed(ids(20, 21, 22)), 3),
        (TokensPushed(ids()), 0),
        (UserTurnAdded("Hello"), len(FakeRenderer().user_turn("Hello", Thinking.OFF, ()).token_ids)),
        (UserTurnAdded(ids(20, 21)), len(FakeRenderer().user_turn(ids(20, 21), Thinking.OFF, ()).token_ids)),
        (TextPushed("Hello"), 0),  # which the stream's tokenizer counts
        (RollbackRequested(0), 0),
        (FinishRequested(), 0),
    ],
)
def test_later_messages(event: CallerEvent, num_tokens: int) -> None:
    usage = metered()
    Meter(usage, FakeRenderer()).take_pushed(event)
    assert num_taken(usage) == num_tokens


def test_single_tokens_count_until_there_are_none() -> None:
    meter = Meter(metered(burst=2), FakeRenderer())
    meter.take_token()
    meter.take_token()
    with pytest.raises(Overloaded):
        meter.take_token()


async def test_who_is_not_metered_costs_nothing() -> None:
    class Untouchable(FakeRenderer):
        def prompt(self, *_: object) -> RenderedTurn:
            raise AssertionError("rendered")

        user_turn = prompt  # type: ignore[assignment]

    meter, event = Meter(TenantUsage(Tenant("acme")), Untouchable()), opening(conversation("Hello"))
    assert await meter.take_prompt(event) is event
    meter.take_token()
    meter.take_pushed(TokensPushed(ids(20)))
    meter.take_pushed(UserTurnAdded("Hello"))


def test_refused_messages_take_nothing() -> None:
    usage = metered(burst=5)
    with pytest.raises(InvalidField, match=r"^tokens\.token_ids: 6 tokens"):
        Meter(usage, FakeRenderer()).take_pushed(TokensPushed(ids(*range(20, 26))))
    assert usage.take_some_tokens(3) == 3
    with pytest.raises(Overloaded):
        Meter(usage, FakeRenderer()).take_pushed(TokensPushed(ids(20, 21, 22)))
    assert usage.take_some_tokens(9) == 2


def test_text_is_counted_as_it_settles(serving: TenantUsage) -> None:
    renderer, plain = MeteredRenderer(FakeRenderer()), FakeRenderer().text_stream()
    stream, num_tokens = renderer.text_stream(), 0
    for text in ("Wash the ri", "ce, ", "", "then cook it"):
        tokens = stream.push(text)
        assert tokens == plain.push(text)
        num_tokens += len(tokens)
    tokens = stream.flush()
    assert tokens == plain.flush()
    assert num_tokens + len(tokens) == num_taken(serving) > 0


def test_text_is_counted_for_the_tenant_that_opened_the_stream(serving: TenantUsage) -> None:
    stream = MeteredRenderer(FakeRenderer()).text_stream()
    current_usage.set(None)  # as in a step's results, which belong to no call
    num_tokens = len(stream.push("Hello, you")) + len(stream.flush())
    assert num_taken(serving) == num_tokens > 0


def test_text_beyond_the_rate(serving: TenantUsage) -> None:
    stream = MeteredRenderer(FakeRenderer()).text_stream()
    serving.take_some_tokens(BURST - 3)
    with pytest.raises(Overloaded):
        stream.push("Hello, you over there ")


def test_without_a_tenant_streams_are_the_models_own() -> None:
    assert type(MeteredRenderer(FakeRenderer()).text_stream()) is type(FakeRenderer().text_stream())


class Conversations:
    def conversation(self, messages: tuple[Message, ...]) -> "array[int]":
        return ids(*range(len(messages[0].content)))

    def text(self, token_ids: "array[int]") -> str:
        return f"{len(token_ids)} tokens"


def test_classified_conversations_are_counted(serving: TenantUsage) -> None:
    renderer = MeteredConversations(Conversations())  # type: ignore[arg-type]
    assert len(renderer.conversation(conversation("Hello"))) == 5
    assert renderer.text(ids(1, 2)) == "2 tokens"
    assert num_taken(serving) == 5
    with pytest.raises(Overloaded):
        renderer.conversation(conversation("Hello"))
    current_usage.set(None)
    assert len(renderer.conversation(conversation("Hello"))) == 5
