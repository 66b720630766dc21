"""Classify on the event loop: admission, the wait for the answer, and what the answer means."""

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from guardwire_server.core.answer import MAX_ANSWER_TOKENS, Answer, UnparsableAnswer, parse_answer
from guardwire_server.core.errors import Draining, EngineUnavailable, OutOfRange, Overloaded, RequestError
from guardwire_server.core.policy import Action, DecisionReason, Policy, describe
from guardwire_server.core.ports import is_long
from guardwire_server.core.verdict import Message, RiskProbabilities, Role
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.engine.gen_engine import CallResult, CancelCall, GenEngine, GeneratedAnswer, StartCall


class ConversationRenderer(Protocol):
    """The generative model's chat template and tokenizer. Pure."""

    def conversation(self, messages: Sequence[Message]) -> "array[int]":
        """The templated prompt that asks about the last message."""
        ...

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, control tokens left out."""
        ...


@dataclass(frozen=True, slots=True)
class Classification:
    """A judged conversation; `answer` is None when the model did not follow its grammar, and then nothing is safe."""

    answer: Answer | None
    probabilities: RiskProbabilities | None
    action: Action
    reason: DecisionReason
    explanation: str
    text: str
    num_prompt_tokens: int
    num_answer_tokens: int
    num_passes: int
    duration_s: float


class Classifier:
    """Owner of the calls that wait. Thread: the event loop.

    Invariant: a call that is over, however it ended, is neither here nor in the engine.
    """

    def __init__(
        self,
        renderer: ConversationRenderer,
        *,
        max_calls: int,
        max_context_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renderer = renderer
        self._max_calls = max_calls
        self._max_prompt_tokens = max_context_tokens - MAX_ANSWER_TOKENS
        self._clock = clock
        self._futures: dict[int, asyncio.Future[GeneratedAnswer]] = {}
        self._num_rendering = 0
        self._call_ids = itertools.count()
        self._thread: DeviceThread
        self._engine: GenEngine
        self.is_draining = False
        self._ended = asyncio.Event()  # set whenever a call has

    def connect(self, thread: DeviceThread, engine: GenEngine) -> None:
        """Says where calls go; once, before the first call."""
        self._thread, self._engine = thread, engine

    @property
    def num_calls(self) -> int:
        """Calls that wait or run."""
        return len(self._futures) + self._num_rendering

    async def classify(self, messages: Sequence[Message], policy: Policy, timeout_s: float | None) -> Classification:
        """Judges the last message of a conversation.

        Args:
            messages: The conversation, already checked for its roles and sizes.
            policy: What to make of the verdict.
            timeout_s: After this the call is dropped before it costs another forward pass; None: never.

        Raises:
            Overloaded: When `max_calls` wait already.
            Draining: When the server is stopping.
            OutOfRange: When the conversation is too long for the model's context.
            EngineError: When the step that judged it failed.
        """
        started_s = self._clock()
        self._admit()
        prompt_ids = await self._render(messages)
        if len(prompt_ids) > self._max_prompt_tokens:
            raise OutOfRange(
                "CONTEXT_OVERFLOW",
                "messages",
                f"the conversation has {len(prompt_ids)} tokens with the template, the limit is "
                f"{self._max_prompt_tokens} ({MAX_ANSWER_TOKENS} are kept for the model's answer)",
            )
        role = messages[-1].role
        deadline_s = None if timeout_s is None else started_s + timeout_s
        generated = await self._generate(prompt_ids, role is Role.ASSISTANT, deadline_s)
        text = self._renderer.text(generated.token_ids)
        answer, (action, reason, explanation) = _judge(text, role, policy)
        return Classification(
            answer=answer,
            probabilities=generated.probabilities,
            action=action,
            reason=reason,
            explanation=explanation,
            text=text,
            num_prompt_tokens=len(prompt_ids),
            num_answer_tokens=len(generated.token_ids),
            num_passes=generated.num_passes,
            duration_s=self._clock() - started_s,
        )

    def take_results(self, results: Sequence[CallResult]) -> None:
        """Takes what the engine has finished; for calls that were cancelled meanwhile nobody waits."""
        for call_id, outcome in results:
            future = self._futures.get(call_id)
            if future is None or future.done():
                continue
            if isinstance(outcome, RequestError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def emptied(self) -> None:
        """Waits until no call waits or runs; once `is_draining` is set that is for good."""
        while self.num_calls:
            self._ended.clear()
            await self._ended.wait()

    def cut(self) -> None:
        """Ends every call that still waits: the server stops."""
        error = Draining("DRAINING", "the server has stopped", retry_after_s=1.0)
        self.take_results([(call_id, error) for call_id in self._futures])
        for call_id in self._futures:
            self._cancel(call_id)

    def _admit(self) -> None:
        if self.is_draining:
            raise Draining("DRAINING", "the server is stopping", retry_after_s=1.0)
        if self.num_calls >= self._max_calls:
            raise Overloaded(
                "TOO_MANY_CALLS", f"{self._max_calls} Classify calls wait already, the limit", retry_after_s=0.5
            )

    async def _render(self, messages: Sequence[Message]) -> "array[int]":
        """Templates a conversation; a long one beside the event loop, so that no other call waits."""
        if not is_long(messages):
            return self._renderer.conversation(messages)
        self._num_rendering += 1
        try:
            return await asyncio.to_thread(self._renderer.conversation, messages)
        finally:
            self._num_rendering -= 1
            self._ended.set()

    async def _generate(
        self, prompt_ids: "array[int]", expects_refusal: bool, deadline_s: float | None
    ) -> GeneratedAnswer:
        call_id = next(self._call_ids)
        future: asyncio.Future[GeneratedAnswer] = asyncio.get_running_loop().create_future()
        self._futures[call_id] = future
        try:
            self._thread.submit(self._engine, StartCall(call_id, prompt_ids, expects_refusal, deadline_s))
            return await future
        except asyncio.CancelledError:
            self._cancel(call_id)
            raise
        finally:
            del self._futures[call_id]
            self._ended.set()

    def _cancel(self, call_id: int) -> None:
        with contextlib.suppress(EngineUnavailable):  # a lost device has dropped the call already
            self._thread.submit(self._engine, CancelCall(call_id))


def _judge(text: str, role: Role, policy: Policy) -> tuple[Answer | None, tuple[Action, DecisionReason, str]]:
    """What the answer says and what the policy makes of it."""
    try:
        answer = parse_answer(text, expects_refusal=role is Role.ASSISTANT)
    except UnparsableAnswer as error:
        explanation = f"not judged: {error}; policy '{policy.name}' says {policy.on_error.name}"
        return None, (policy.on_error, DecisionReason.NOT_JUDGED, explanation)
    categories = answer.categories or (None,)
    action = max(policy.action(role, answer.risk_level, category) for category in categories)
    explanation = f"{describe(answer.risk_level, categories[0])}: policy '{policy.name}' says {action.name}"
    return answer, (action, DecisionReason.VERDICT, explanation)
