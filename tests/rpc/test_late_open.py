"""ModerateStreams: a stream that ends while its long first message is still being read."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, cast

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.access.usage import caller_usage
from guardwire_server.core.events import RenderedTurn, Thinking
from guardwire_server.core.policy_set import built_in_policies
from guardwire_server.core.ports import LONG_TEXT_CHARS, SessionLimits
from guardwire_server.core.verdict import Category, Message
from guardwire_server.engine.session_manager import ManagerLimits, SessionManager
from guardwire_server.rpc.catalogue import Catalogue, RequestLimits, ServedModel
from guardwire_server.rpc.many_streams import ManyStreams
from guardwire_server.rpc.requests import RequestReader
from guardwire_server.telemetry.server import ServerTelemetry
from tests.core.fakes import FakeRenderer
from tests.engine.fakes import TIMEOUT_S, ManualClock
from tests.rpc.messages import opening, user

IDLE_TIMEOUT_S = 10.0
LIMITS = RequestLimits(9, 9, 64, 2 * LONG_TEXT_CHARS, 9, IDLE_TIMEOUT_S, 60.0, 60.0)
MODEL = ServedModel("m", "r", "f", b"", 256, 200, tuple(Category), tuple(Category), "float32", "cpu", is_demo=True)
LONG = "x" * (LONG_TEXT_CHARS + 1)


class SlowRenderer(FakeRenderer):
    """Reads a long conversation only when it may; of its many tokens it keeps a few."""

    def __init__(self) -> None:
        self.is_reading, self.may_read = threading.Event(), threading.Event()

    def prompt(self, messages: Sequence[Message], thinking: Thinking) -> RenderedTurn:
        if len(messages[0].content) > LONG_TEXT_CHARS:
            self.is_reading.set()
            assert self.may_read.wait(TIMEOUT_S)
        short = [Message(message.role, message.content[:9]) for message in messages]
        return super().prompt(short, thinking)


class DeafThread:
    """Stands in for the device thread: nothing is ever judged."""

    def submit(self, engine: object, message: object) -> None:
        """Forgets it."""


def message(stream_id: int, content: str) -> pb.ModerateStreamsRequest:
    request = pb.StreamRequest(stream_id=stream_id, request=opening([user(content)]))
    return pb.ModerateStreamsRequest(requests=[request])


async def test_it_is_told_its_error_and_disturbs_nobody() -> None:
    renderer, clock = SlowRenderer(), ManualClock()
    manager = SessionManager(renderer, ManagerLimits(9), SessionLimits(200, 16, IDLE_TIMEOUT_S, 60.0), clock)
    manager.connect(cast("Any", DeafThread()), cast("Any", None))
    reader = RequestReader(Catalogue("1", MODEL, None, built_in_policies, LIMITS))
    many = ManyStreams(manager, reader, MODEL, LIMITS, caller_usage(), ServerTelemetry("1"))
    async with asyncio.timeout(TIMEOUT_S), aclosing(cast("Any", many.responses())) as responses:
        await many.take(message(2, "hi"))
        assert [item.stream_id for item in (await anext(responses)).responses] == [2]
        taking = asyncio.create_task(many.take(message(1, LONG)))
        await asyncio.to_thread(renderer.is_reading.wait, TIMEOUT_S)
        clock.advance(IDLE_TIMEOUT_S)
        manager.check_deadlines()  # stream 2 is spared: it waits for a verdict
        (ended,) = (await anext(responses)).responses
        assert (ended.stream_id, ended.error.reason) == (1, "IDLE_TIMEOUT")
        renderer.may_read.set()
        await taking
        many.end_input()
        (abandoned,) = (await anext(responses)).responses
        assert (abandoned.stream_id, abandoned.error.reason) == (2, "ABANDONED")
        assert await anext(responses, None) is None
    assert manager.num_sessions == 0
