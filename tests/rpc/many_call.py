"""A caller of ModerateStreams."""

import asyncio
from collections.abc import Callable
from typing import Self

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.packed import responses_of, token_step
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S, Received


class ManyCall:
    """A ModerateStreams call; what came is kept by stream. `async with` cancels it at the end if it is still open."""

    def __init__(self, server: RunningServer) -> None:
        self._call = server.stub.ModerateStreams()
        self._responses = self._call.__aiter__()
        self.received: dict[int, Received] = {}
        self.errors: dict[int, pb.StreamError] = {}
        self.num_messages = 0
        self.num_packed = 0  # verdicts that came packed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def send(self, *requests: tuple[int, pb.ModerateStreamRequest]) -> None:
        """Sends all of it as one message."""
        items = [pb.StreamRequest(stream_id=stream_id, request=request) for stream_id, request in requests]
        await self.send_message(pb.ModerateStreamsRequest(requests=items))

    async def send_step(self, *tokens: tuple[int, int]) -> None:
        """Sends one token for each (stream id, token id), packed."""
        await self.send_message(pb.ModerateStreamsRequest(step=token_step(*tokens)))

    async def send_message(self, message: pb.ModerateStreamsRequest) -> None:
        await asyncio.wait_for(self._call.write(message), WAIT_S)

    async def read_until(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            response = await asyncio.wait_for(anext(self._responses), WAIT_S)
            self.num_messages += 1
            self.num_packed += len(response.step.stream_ids)
            for stream_id, told in responses_of(response):
                assert stream_id not in self.errors, "nothing comes after an error"
                self.received.setdefault(stream_id, Received()).take(told)
            self.errors.update({item.stream_id: item.error for item in response.responses if item.HasField("error")})

    async def read_to_the_end(self) -> grpc.StatusCode:
        """Ends the input and reads what is left; returns the call's status."""
        await self._call.done_writing()
        with pytest.raises(StopAsyncIteration):
            await self.read_until(lambda: False)
        return await self._call.code()

    def has_ended(self, *stream_ids: int) -> Callable[[], bool]:
        return lambda: all(stream_id in self.errors or self.summary(stream_id) for stream_id in stream_ids)

    def has_verdicts(self, stream_id: int, number: int) -> Callable[[], bool]:
        return lambda: stream_id in self.received and len(self.received[stream_id].verdicts) >= number

    def has_judged_prompts(self, *stream_ids: int) -> Callable[[], bool]:
        return lambda: all(one in self.received and self.received[one].prompt_verdicts for one in stream_ids)

    def summary(self, stream_id: int) -> pb.Summary | None:
        return self.received[stream_id].summary if stream_id in self.received else None
