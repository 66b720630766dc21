import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from guardwire_server.core.answer import MAX_ANSWER_TOKENS, Answer
from guardwire_server.core.errors import (
    DeadlinePassed,
    Draining,
    EngineError,
    EngineUnavailable,
    OutOfRange,
    Overloaded,
)
from guardwire_server.core.policy import Action, DecisionReason, Policy, TurnRules
from guardwire_server.core.step_plan import StepPlan
from guardwire_server.core.verdict import Category, Message, RiskLevel, Role
from guardwire_server.engine.backend import GenReadings
from guardwire_server.engine.classifier import Classification, Classifier
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.engine.gen_engine import GenEngine
from tests.engine.fakes import (
    TIMEOUT_S,
    FakeConversationRenderer,
    FakeGenBackend,
    ManualClock,
    gen_prompt,
    risk_probabilities,
    scheduler,
    settle,
)

MAX_CONTEXT_TOKENS = 256
POLICY = Policy("p", "", assistant=TurnRules(Action.BLOCK, categories={Category.PII: Action.FLAG}))


class GatedBackend(FakeGenBackend):
    """Steps only while its gate is open."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        super().__init__(4 * MAX_CONTEXT_TOKENS, answers)
        self.gate = threading.Event()
        self.gate.set()

    def step(self, plan: StepPlan) -> GenReadings:
        assert self.gate.wait(TIMEOUT_S)
        return super().step(plan)


class Harness:
    """A classifier with everything below it but the model."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.clock = ManualClock()
        self.backend = GatedBackend(answers)
        self.classifier = Classifier(
            FakeConversationRenderer(), max_calls=2, max_context_tokens=MAX_CONTEXT_TOKENS, clock=self.clock
        )
        self.engine = GenEngine(
            scheduler(4, MAX_CONTEXT_TOKENS), self.backend, self.classifier.take_results, self.clock
        )
        self.thread = DeviceThread([self.engine])
        self.classifier.connect(self.thread, self.engine)

    async def classify(
        self, text: str, role: Role = Role.USER, policy: Policy = POLICY, timeout_s: float | None = None
    ) -> Classification:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.classifier.classify([Message(role, text)], policy, timeout_s)


@asynccontextmanager
async def running(answers: Mapping[str, str] | None = None) -> AsyncIterator[Harness]:
    harness = Harness(answers or {})
    harness.thread.start()
    try:
        yield harness
    finally:
        harness.backend.gate.set()
        assert await harness.thread.stop(TIMEOUT_S)
        assert harness.classifier.num_calls == 0
        assert harness.engine.load.num_sequences == 0


async def test_a_judged_prompt() -> None:
    text = "Safety: Unsafe\nCategories: Violent"
    async with running({"bad": text}) as harness:
        result = await harness.classify("bad")
    prompt = gen_prompt("bad")
    assert result == Classification(
        answer=Answer(RiskLevel.UNSAFE, (Category.VIOLENT,), None),
        probabilities=risk_probabilities([*prompt, *FakeGenBackend.verdict_prefix]),
        action=Action.FLAG,
        reason=DecisionReason.VERDICT,
        explanation="Unsafe (Violent): policy 'p' says FLAG",
        text=text,
        num_prompt_tokens=4,
        num_answer_tokens=len(text) + 1,
        num_passes=len(text) + 1,
        duration_s=0.0,
    )


async def test_an_answers_refusal_and_the_highest_action_of_its_categories() -> None:
    text = "Safety: Unsafe\nCategories: PII (Personally Identifiable Information), Violent\nRefusal: No"
    async with running({"bad": text, "pii": text.replace(", Violent", "")}) as harness:
        both = await harness.classify("bad", Role.ASSISTANT)
        one = await harness.classify("pii", Role.ASSISTANT)
    assert both.answer == Answer(RiskLevel.UNSAFE, (Category.PII, Category.VIOLENT), False)
    assert (both.action, one.action) == (Action.BLOCK, Action.FLAG)


async def test_a_safe_text_is_allowed() -> None:
    async with running() as harness:
        result = await harness.classify("good")
    assert (result.action, result.explanation) == (Action.ALLOW, "Safe: policy 'p' says ALLOW")


@pytest.mark.parametrize("text", ["I cannot judge this", "Safety: Safe", "Safety: Safe\nCategories: None" + "\nx" * 99])
@pytest.mark.parametrize("on_error", [Action.BLOCK, Action.FLAG])
async def test_what_cannot_be_parsed_was_not_judged(text: str, on_error: Action) -> None:
    async with running({"odd": text}) as harness:
        result = await harness.classify("odd", policy=Policy("careful", "", on_error=on_error))
    assert (result.answer, result.action, result.reason) == (None, on_error, DecisionReason.NOT_JUDGED)
    assert result.text == text[:MAX_ANSWER_TOKENS]
    assert result.explanation.startswith("not judged: ")
    assert result.explanation.endswith(f"policy 'careful' says {on_error.name}")


async def test_a_missing_refusal_of_an_answer_was_not_judged() -> None:
    async with running() as harness:
        result = await harness.classify("good", Role.ASSISTANT)
    assert (result.answer, result.reason) == (None, DecisionReason.NOT_JUDGED)


async def test_no_more_calls_than_admitted() -> None:
    async with running() as harness:
        harness.backend.gate.clear()
        calls = [asyncio.create_task(harness.classify(text)) for text in "ab"]
        await settle()
        assert harness.classifier.num_calls == 2
        with pytest.raises(Overloaded) as caught:
            await harness.classify("c")
        assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_CALLS", 0.5)
        harness.backend.gate.set()
        assert [result.action for result in await asyncio.gather(*calls)] == [Action.ALLOW] * 2
        assert (await harness.classify("c")).action is Action.ALLOW


async def test_a_draining_server_takes_nothing_new_and_finishes_what_runs() -> None:
    async with running() as harness:
        harness.backend.gate.clear()
        call = asyncio.create_task(harness.classify("a"))
        await settle()
        harness.classifier.is_draining = True
        with pytest.raises(Draining):
            await harness.classify("b")
        harness.backend.gate.set()
        assert (await call).action is Action.ALLOW


async def test_a_conversation_leaves_room_for_the_answer() -> None:
    async with running() as harness:
        longest = MAX_CONTEXT_TOKENS - MAX_ANSWER_TOKENS - 1
        assert (await harness.classify("x" * longest)).num_prompt_tokens == longest + 1
        with pytest.raises(OutOfRange) as caught:
            await harness.classify("x" * (longest + 1))
    assert (caught.value.reason, caught.value.field) == ("CONTEXT_OVERFLOW", "messages")


async def test_the_longest_answer_to_the_longest_conversation_fits() -> None:
    longest = "x" * (MAX_CONTEXT_TOKENS - MAX_ANSWER_TOKENS - 1)
    async with running({longest: "y" * 200}) as harness:
        assert (await harness.classify(longest)).num_answer_tokens == MAX_ANSWER_TOKENS


async def test_a_cancelled_call_is_cancelled_in_the_engine() -> None:
    async with running({"endless": "y" * 200}) as harness:
        harness.backend.gate.clear()
        call = asyncio.create_task(harness.classify("endless"))
        await settle()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert harness.classifier.num_calls == 0
        harness.backend.gate.set()
        await harness.classify("short")
        assert harness.engine.load.num_sequences == 0


async def test_a_deadline_drops_the_call() -> None:
    async with running() as harness:
        harness.backend.gate.clear()
        call = asyncio.create_task(harness.classify("a", timeout_s=3.0))
        await settle()
        harness.clock.now_s += 3.0
        harness.backend.gate.set()
        with pytest.raises(DeadlinePassed):
            await call


async def test_a_failed_step_is_told_and_the_next_call_works() -> None:
    async with running() as harness:
        harness.backend.num_failures_to_come = 1
        with pytest.raises(EngineError) as caught:
            await harness.classify("a")
        assert caught.value.reason == "STEP_FAILED"
        assert (await harness.classify("a")).action is Action.ALLOW


async def test_a_lost_device_is_told() -> None:
    async with running() as harness:
        harness.backend.num_failures_to_come = 3
        for _ in range(3):
            with pytest.raises(EngineError):
                await harness.classify("a")
        with pytest.raises(EngineUnavailable):
            await harness.classify("a")


async def test_nobody_waits_for_ever_when_the_server_stops() -> None:
    async with running() as harness:
        harness.backend.gate.clear()
        call = asyncio.create_task(harness.classify("a"))
        await settle()
        stop = asyncio.create_task(harness.thread.stop(TIMEOUT_S))
        await settle()
        harness.backend.gate.set()
        assert await stop
        with pytest.raises(EngineUnavailable) as caught:
            await call
        assert caught.value.reason == "STOPPED"


async def test_results_for_nobody_are_passed_over() -> None:
    async with running() as harness:
        harness.classifier.take_results([(99, EngineUnavailable("LOST", "lost"))])
