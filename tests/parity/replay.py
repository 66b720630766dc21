"""Plays schedules to a server over gRPC, all sessions of one at the same time: on calls of their own, or on one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.parity.schedules import Progress, SessionPlan
from tests.rpc.packed import responses_of

TIMEOUT_S = 60.0
"""A session takes a fraction of a second."""

if TYPE_CHECKING:
    Stub = moderation_pb2_grpc.ModerationServiceAsyncStub

Send = Callable[[pb.ModerateStreamRequest], Awaitable[None]]


async def play_schedule(stub: "Stub", plans: list[SessionPlan]) -> list[list[pb.ModerateStreamResponse]]:
    """Each session's responses, in their order."""
    inboxes = [_Inbox() for _ in plans]
    async with asyncio.TaskGroup() as group:
        for plan, inbox in zip(plans, inboxes, strict=True):
            group.create_task(_in_time(plan, _play_on_own_call(stub, plan, inbox)))
    return [inbox.responses for inbox in inboxes]


async def play_schedule_on_one_call(
    stub: "Stub", plans: list[SessionPlan], *, packs: bool = False
) -> list[list[pb.ModerateStreamResponse]]:
    """As `play_schedule`, by ModerateStreams."""
    shared = _SharedCall(stub, len(plans), packs=packs)
    reader = asyncio.create_task(shared.read())
    try:
        async with asyncio.TaskGroup() as group:
            for number, plan in enumerate(plans):
                group.create_task(_in_time(plan, _play(plan, shared.inboxes[number], shared.sender(number))))
        await shared.call.done_writing()
        await reader
        assert await shared.call.code() == grpc.StatusCode.OK, await shared.call.details()
    finally:
        reader.cancel()
        shared.call.cancel()
    return [inbox.responses for inbox in shared.inboxes]


async def play_schedule_packed(stub: "Stub", plans: list[SessionPlan]) -> list[list[pb.ModerateStreamResponse]]:
    """As `play_schedule_on_one_call`, tokens packed wherever the contract has a packed form for them."""
    return await play_schedule_on_one_call(stub, plans, packs=True)


async def _in_time(plan: SessionPlan, playing: Awaitable[None]) -> None:
    """A stream that hangs is named, not only noticed."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await playing
    except TimeoutError:
        raise AssertionError(f"{plan.name}: not over after {TIMEOUT_S:g} s") from None


@dataclass
class _Inbox:
    """What has come on one stream; `changed` is set whenever something has."""

    responses: list[pb.ModerateStreamResponse] = field(default_factory=list)
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False

    def take(self, response: pb.ModerateStreamResponse) -> None:
        self.responses.append(response)
        before = self.progress
        match response.WhichOneof("response"):
            case "verdicts":
                num_tokens = response.verdicts.start_index + len(response.verdicts.risk_levels)
                self.progress = Progress(before.num_rollbacks, num_tokens, before.num_prompts)
            case "prompt_verdict":
                self.progress = Progress(before.num_rollbacks, before.num_tokens, before.num_prompts + 1)
            case "rolled_back":
                num_tokens = min(before.num_tokens, response.rolled_back.num_tokens_kept)
                self.progress = Progress(before.num_rollbacks + 1, num_tokens, before.num_prompts)
        self.changed.set()

    def end(self) -> None:
        self.is_over = True
        self.changed.set()

    async def wait_for(self, progress: Progress) -> None:
        while self.progress != progress and not self.is_over:
            self.changed.clear()
            await self.changed.wait()


async def _play(plan: SessionPlan, inbox: _Inbox, send: Send) -> None:
    """Sends all that a session sends, each message when the ones before are answered as far as the plan says."""
    for step in plan.steps:
        await send(step.request)
        if step.awaits:
            await inbox.wait_for(step.awaits)


async def _play_on_own_call(stub: "Stub", plan: SessionPlan, inbox: _Inbox) -> None:
    call = stub.ModerateStream()

    async def read() -> None:
        try:
            async for response in call:
                inbox.take(response)
        finally:
            inbox.end()

    reader = asyncio.create_task(read())
    try:
        await _play(plan, inbox, call.write)
        await call.done_writing()
        await reader
        assert await call.code() == grpc.StatusCode.OK, f"{plan.name}: {await call.details()}"
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"{plan.name}: {error.code()}: {error.details()}") from error
    finally:
        reader.cancel()
        call.cancel()


class _SharedCall:
    """A ModerateStreams call; `inboxes` hold what its streams were told, by their ids."""

    def __init__(self, stub: "Stub", num_streams: int, *, packs: bool) -> None:
        self.call = stub.ModerateStreams()
        self._packs = packs
        self.inboxes = [_Inbox() for _ in range(num_streams)]
        self._gathered: list[pb.StreamRequest] = []
        self._writing = asyncio.Lock()

    def sender(self, stream_id: int) -> Send:
        """What sends for one stream: while a message is being written, the next one gathers."""

        async def send(request: pb.ModerateStreamRequest) -> None:
            self._gathered.append(pb.StreamRequest(stream_id=stream_id, request=request))
            async with self._writing:
                requests, self._gathered = self._gathered, []
                if requests:
                    await self.call.write(self._message(requests))

        return send

    def _message(self, requests: list[pb.StreamRequest]) -> pb.ModerateStreamsRequest:
        """Packs the tokens behind which their stream has nothing more in this message; one of them may have many."""
        message = pb.ModerateStreamsRequest()
        last = {item.stream_id: item for item in requests}
        for item in requests:
            if self._packs and item is last[item.stream_id] and item.request.HasField("tokens"):
                token_ids = item.request.tokens.token_ids
                message.step.token_ids.extend(token_ids)
                message.step.stream_ids.extend([item.stream_id] * len(token_ids))
            else:
                message.requests.append(item)
        return message

    async def read(self) -> None:
        """Deals out what comes."""
        try:
            async for message in self.call:
                for item in message.responses:
                    assert not item.HasField("error"), f"stream {item.stream_id}: {item.error}"
                for stream_id, response in responses_of(message):
                    self.inboxes[stream_id].take(response)
        finally:
            for inbox in self.inboxes:
                inbox.end()
