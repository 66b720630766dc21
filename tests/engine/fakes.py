"""Backends without a model, a device thread without a thread, and a clock that a test moves.

The backends judge what their simulated arena holds, not what a plan says, so a mistake in slots, copies or evictions
gives another verdict. tests/model holds the real backends to the same Protocols.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from zlib import crc32

from guardwire_server.core.errors import EngineUnavailable
from guardwire_server.core.kv_arena import KvArena
from guardwire_server.core.scheduler import Scheduler, SchedulerLimits
from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.core.verdict import Message, RiskProbabilities
from guardwire_server.engine.backend import GenReadings, StreamReadings
from guardwire_server.engine.device_thread import DeviceThread, StepEngine
from tests.core.fakes import FIRST_CHARACTER, IM_END, model_verdict, packed
from tests.core.simulated_arena import SimulatedArena

PROMPT_END = 9
"""Ends a prompt of the fake generative model; what follows it is the answer."""

TIMEOUT_S = 20.0
"""How long a test waits for what must happen; only a failing one waits so long."""


async def wait_until(is_true: Callable[[], bool], changed: asyncio.Event) -> None:
    """Waits until something is true; whoever may have made it true sets `changed`."""
    async with asyncio.timeout(TIMEOUT_S):
        while not is_true():
            changed.clear()
            await changed.wait()


async def settle() -> None:
    """Lets every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, duration_s: float) -> None:
        self.now_s += duration_s


class BackendFault(Exception):
    """What a fake backend raises when told to."""


class FakeStreamBackend:
    """Implements engine.backend.StreamBackend with `model_verdict`."""

    def __init__(self, num_tokens: int) -> None:
        self._arena = SimulatedArena(num_tokens)
        self.num_failures_to_come = 0
        self.num_steps = 0

    def step(self, plan: StepPlan) -> StreamReadings:
        self.num_steps += 1
        if self.num_failures_to_come:
            self.num_failures_to_come -= 1
            raise BackendFault
        self._arena.carry_out(plan)
        responses, queries = (
            packed(
                model_verdict(self._arena.context(chunk, offset), is_query=read is Read.QUERY)
                for chunk in plan.chunks
                for offset, code in enumerate(chunk.reads)
                if code == read
            )
            for read in (Read.RESPONSE, Read.QUERY)
        )
        return StreamReadings(responses, queries)


class FakeGenBackend:
    """Implements engine.backend.GenBackend; every character is a token.

    `answers` says what is answered to a prompt whose text it names; anything else is safe.
    """

    verdict_prefix = tuple(FIRST_CHARACTER + ord(character) for character in "Safety: ")
    end_ids = frozenset((IM_END,))
    likely_answers: Mapping[bool, Sequence[tuple[int, ...]]] = MappingProxyType({False: (), True: ()})

    def __init__(self, num_tokens: int, answers: Mapping[str, str] | None = None) -> None:
        self._arena = SimulatedArena(num_tokens)
        self._answers = answers or {}
        self.num_failures_to_come = 0
        self.num_steps = 0

    def step(self, plan: StepPlan) -> GenReadings:
        self.num_steps += 1
        if self.num_failures_to_come:
            self.num_failures_to_come -= 1
            raise BackendFault
        self._arena.carry_out(plan)
        next_ids, probabilities = array("i"), array("f")
        for chunk in plan.chunks:
            for offset, code in enumerate(chunk.reads):
                if code == Read.LOGITS:
                    context = self._arena.context(chunk, offset).tolist()
                    next_ids.append(self._next_id(context))
                    probabilities.extend(risk_logits(context))
        return GenReadings(next_ids, probabilities)

    def _next_id(self, context: list[int]) -> int:
        prompt_stop = context.index(PROMPT_END)
        answer = self._answers.get(as_text(context[:prompt_stop]), "Safety: Safe\nCategories: None")
        answer_ids = [*as_ids(answer), IM_END]
        position = len(context) - prompt_stop - 1
        if context[prompt_stop + 1 :] != answer_ids[:position]:
            return FIRST_CHARACTER + crc32(array("i", context).tobytes()) % 64  # after a guess that was wrong
        return answer_ids[position]


class FakeConversationRenderer:
    """Implements engine.classifier.ConversationRenderer: the last message and the end of the prompt."""

    def conversation(self, messages: Sequence[Message]) -> "array[int]":
        return gen_prompt(messages[-1].content)

    def text(self, token_ids: Sequence[int]) -> str:
        return as_text(token_ids)


class SteppedThread(DeviceThread):
    """A device thread that the test is: messages are applied, steps done and results delivered when it says so."""

    def __init__(self, engine: StepEngine) -> None:
        super().__init__([engine])
        self.engine = engine
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Sequence[Any]] = deque()

    def submit(self, engine: StepEngine, message: object) -> None:
        assert engine is self.engine
        if self.is_dead:
            raise EngineUnavailable("DEVICE_LOST", "lost")
        self.inbox.append(message)

    @property
    def newest(self) -> object | None:
        return self.inbox[-1] if self.inbox else None

    def apply(self) -> None:
        """Applies the oldest message."""
        self.engine.apply(self.inbox.popleft())
        self.engine.update_load()

    def step(self) -> None:
        """Does one step; its results wait."""
        if results := self.engine.step():
            self.outbox.append(results)

    def deliver(self) -> None:
        """Delivers the oldest step's results."""
        self.engine.deliver(self.outbox.popleft())

    def run_until_idle(self) -> None:
        """All of it until there is nothing to do."""
        while self.inbox or self.engine.has_work or self.outbox:
            while self.inbox:
                self.apply()
            if self.engine.has_work:
                self.step()
            while self.outbox:
                self.deliver()


def scheduler(num_roots: int = 4, root_tokens: int = 256, limits: SchedulerLimits | None = None) -> Scheduler:
    """A scheduler with an arena of its own."""
    return Scheduler(KvArena(num_roots, root_tokens), limits or SchedulerLimits())


def risk_logits(context: Sequence[int]) -> tuple[float, float, float]:
    """What the fake generative model thinks of the levels after these tokens, in multiples of 1/1024."""
    code = crc32(array("i", context).tobytes())
    safe, controversial = (code & 0xFF) / 1024, (code >> 8 & 0xFF) / 1024
    return safe, controversial, 1 - safe - controversial


def risk_probabilities(context: Sequence[int]) -> RiskProbabilities:
    """The same as the engine reports it."""
    return RiskProbabilities(*risk_logits(context))


def gen_prompt(text: str) -> "array[int]":
    """A templated prompt of the fake generative model."""
    return array("i", (*as_ids(text), PROMPT_END))


def as_ids(text: str) -> list[int]:
    """A token for each character."""
    return [FIRST_CHARACTER + ord(character) for character in text]


def as_text(token_ids: Sequence[int]) -> str:
    """The characters, control tokens left out."""
    return "".join(chr(token_id - FIRST_CHARACTER) for token_id in token_ids if token_id >= FIRST_CHARACTER)
