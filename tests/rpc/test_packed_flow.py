"""ModerateStreams: when packed steps hold their caller's input back."""

import asyncio

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.access.rules import TenantLimits
from guardwire_server.access.usage import caller_usage
from guardwire_server.core.policy_set import built_in_policies
from guardwire_server.rpc.catalogue import Catalogue
from guardwire_server.rpc.many_streams import ManyStreams
from guardwire_server.rpc.requests import RequestReader
from guardwire_server.telemetry.server import ServerTelemetry
from tests.engine.fakes import settle
from tests.engine.streams import MANAGER_LIMITS, Server
from tests.engine.test_offered_verdicts import SAFE, judge_by_id
from tests.rpc.messages import opening, user
from tests.rpc.packed import token_step
from tests.rpc.test_late_open import LIMITS, MODEL


class Call:
    """A call for many streams, before a device that steps when it is told to; nobody reads but by `read`."""

    def __init__(self) -> None:
        self.server = Server()
        self.server.backend.step = judge_by_id  # type: ignore[method-assign]
        reader = RequestReader(Catalogue("1", MODEL, None, built_in_policies, LIMITS))
        self.usage = caller_usage()
        self.many = ManyStreams(self.server.manager, reader, MODEL, LIMITS, self.usage, ServerTelemetry("1"))
        self._responses = self.many.responses()

    async def open(self, *stream_ids: int) -> None:
        requests = [pb.StreamRequest(stream_id=number, request=opening([user("hi")])) for number in stream_ids]
        await self.many.take(pb.ModerateStreamsRequest(requests=requests))
        self.server.thread.run_until_idle()
        await self.read()

    def push(self, *stream_ids: int) -> asyncio.Task[None]:
        """Begins to hand over one safe token for each of these; done when the next message may come."""
        step = token_step(*((number, SAFE) for number in stream_ids))
        return asyncio.create_task(self.many.take(pb.ModerateStreamsRequest(step=step)))

    async def read(self) -> pb.ModerateStreamsResponse:
        return await anext(self._responses)


async def test_a_caller_that_does_not_read_is_held_at_the_bound() -> None:
    call = Call()
    await call.open(1, 2)
    num_taken = 0
    while num_taken < 10 * MANAGER_LIMITS.max_queued_updates:
        taking = call.push(1, 2)
        await settle()
        call.server.thread.run_until_idle()
        await settle()
        if not taking.done():
            break
        num_taken += 1
    assert num_taken == MANAGER_LIMITS.max_queued_updates
    told = await call.read()
    assert len(told.step.stream_ids) == 2 * (num_taken + 1), "the message that is held has been taken"
    await settle()
    assert taking.done()


async def test_a_stream_that_was_refused_holds_the_call_until_it_has_ended() -> None:
    call = Call()
    await call.open(1, 2)
    await call.push(1, 2)
    call.usage.change_limits(TenantLimits(tokens_per_s=0.001, burst_tokens=1))
    taking = call.push(1, 2)  # there is one token left for the two
    await settle()
    assert not taking.done()
    call.server.thread.run_until_idle()
    await settle()
    assert taking.done()
    told = await call.read()
    assert [(item.stream_id, item.error.reason) for item in told.responses] == [(2, "TENANT_RATE")]
    assert sorted(told.step.stream_ids) == [1, 1, 2]
