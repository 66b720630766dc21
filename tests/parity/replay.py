"""Plays schedules to a server over gRPC, all sessions of one at the same time."""

import asyncio
from dataclasses import dataclass, field

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.parity.schedules import Progress, SessionPlan

TIMEOUT_S = 60.0
"""A session takes a fraction of a second."""


async def play_schedule(
    stub: "moderation_pb2_grpc.ModerationServiceAsyncStub", plans: list[SessionPlan]
) -> list[list[pb.ModerateStreamResponse]]:
    """Each session's responses, in their order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_play_in_time(stub, plan)) for plan in plans]
    return [task.result() for task in tasks]


async def _play_in_time(
    stub: "moderation_pb2_grpc.ModerationServiceAsyncStub", plan: SessionPlan
) -> list[pb.ModerateStreamResponse]:
    """A stream that hangs is named, not only noticed."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _play_session(stub, plan)
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

    async def wait_for(self, progress: Progress) -> None:
        while self.progress != progress and not self.is_over:
            self.changed.clear()
            await self.changed.wait()


async def _play_session(
    stub: "moderation_pb2_grpc.ModerationServiceAsyncStub", plan: SessionPlan
) -> list[pb.ModerateStreamResponse]:
    call = stub.ModerateStream()
    inbox = _Inbox()

    async def read() -> None:
        try:
            async for response in call:
                inbox.take(response)
        finally:
            inbox.is_over = True
            inbox.changed.set()

    reader = asyncio.create_task(read())
    try:
        for step in plan.steps:
            await call.write(step.request)
            if step.awaits:
                await inbox.wait_for(step.awaits)
        await call.done_writing()
        await reader
        assert await call.code() == grpc.StatusCode.OK, f"{plan.name}: {await call.details()}"
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"{plan.name}: {error.code()}: {error.details()}") from error
    finally:
        reader.cancel()
        call.cancel()
    return inbox.responses
