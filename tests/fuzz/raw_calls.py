"""Raw bytes as the messages of live calls, past the caller's own library.

The first byte says which call they are sent on and how it ends; the others are pieces (tests.fuzz.raw_pieces), each
sent as one message.
"""

import asyncio
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import torch
from google.protobuf.message import DecodeError, Message

from guardwire.v1 import moderation_pb2 as pb
from tests.fuzz.choices import Choices
from tests.fuzz.messages import BLANKS, PIECES
from tests.fuzz.raw_pieces import join, split
from tests.fuzz.sequences import NUM_BYTES, SequenceMaker
from tests.fuzz.served import Code, Served
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint
from tests.rpc.running_server import LoadedModels, RunningServer, make_config
from tests.rpc.stream_call import WAIT_S, Failure, Received, StreamCall

NUM_SEEDS = 32
CHECK_EVERY = 200
"""Inputs between two looks at whether anything is left in the server."""

_METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["ModerationService"].methods}
_STREAMS = ("ModerateStream", "ModerateStreams")
_UNARY = tuple(name for name in _METHODS if name not in _STREAMS)
_ENDINGS = 2  # half-close, cancel


class _Taken(Received):
    """Counts responses, whatever they are."""

    def take(self, response: object) -> None:
        self.kinds.append(type(response).__name__)


class _Errors(logging.Handler):
    """Keeps what the server logs as an error.

    What gRPC itself logs of a unary call whose bytes are no message is not the server's.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        is_undecodable = record.exc_info and isinstance(record.exc_info[1], DecodeError)
        if not is_undecodable:
            self.messages.append(self.format(record))


class CallsTarget:
    """Owner of a server, and of the event loop that it runs on while an input is tried."""

    words = PIECES + BLANKS

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._errors = _Errors()
        logging.getLogger().addHandler(self._errors)
        self._loop = asyncio.new_event_loop()
        self._resources = AsyncExitStack()
        self._server: RunningServer
        self._calls: dict[str, Any] = {}
        self._num_inputs = 0
        self._loop.run_until_complete(self._start())

    def seeds(self) -> Iterator[bytes]:
        """Good calls of every kind."""
        served = self._loop.run_until_complete(Served.by(self._server))
        maker, random = SequenceMaker(served), Random(0)
        for _ in range(NUM_SEEDS):
            for number, make in enumerate((maker.stream, maker.many_streams)):
                sequence = make(Choices(random.randbytes(NUM_BYTES)))
                pieces = [(0, request.SerializeToString()) for request in sequence.requests]
                yield bytes((number + len(_METHODS) * random.randrange(_ENDINGS),)) + join(pieces)
            message: Message = maker.request(Choices(random.randbytes(NUM_BYTES))).message
            name = next(name for name in _UNARY if _METHODS[name].input_type.name == message.DESCRIPTOR.name)
            yield bytes((len(_STREAMS) + _UNARY.index(name),)) + join([(0, message.SerializeToString())])

    def try_input(self, data: bytes) -> None:
        """Sends one input; raises if it is answered with a fault of the server's own."""
        if data:
            self._loop.run_until_complete(self._try_call(data))

    def close(self) -> None:
        """Checks that nothing is left in the server, and stops it."""
        self._loop.run_until_complete(self._check_empty())
        self._loop.run_until_complete(self._resources.aclose())
        assert not self._errors.messages, self._errors.messages

    async def _start(self) -> None:
        directory = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-calls-")))
        checkpoints = write_stream_checkpoint(directory / "tiny-stream"), write_gen_checkpoint(directory / "tiny-gen")
        config = make_config(checkpoints, max_context_tokens=512, kv_memory_gib=0.002)
        self._server = await self._resources.enter_async_context(RunningServer(config, LoadedModels().take(config)))
        for name, method in _METHODS.items():
            kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
            open_call = getattr(self._server.channel, "_".join(kind))
            response_type = getattr(pb, method.output_type.name)
            path = f"/{method.containing_service.full_name}/{name}"
            self._calls[name] = open_call(path, response_deserializer=response_type.FromString)

    async def _try_call(self, data: bytes) -> None:
        names = (*_STREAMS, *_UNARY)
        ending, number = divmod(data[0] % (_ENDINGS * len(names)), len(names))
        pieces = [piece for _, piece in split(data[1:])]
        async with asyncio.timeout(WAIT_S):
            if names[number] in _STREAMS:
                await self._try_stream(names[number], pieces, cancels=bool(ending))
            else:
                await self._try_unary(names[number], pieces[0] if pieces else b"")
        assert not self._errors.messages, self._errors.messages
        self._num_inputs += 1
        if self._num_inputs % CHECK_EVERY == 0:
            await self._check_empty()

    async def _try_stream(self, name: str, pieces: Sequence[bytes], *, cancels: bool) -> None:
        call = StreamCall(self._calls[name]())
        call.received = _Taken()
        reader = asyncio.create_task(call.read_all())
        sent: Any = pieces
        await call.send(*sent)
        if cancels:
            await self._server.info()
            call.cancel()
        else:
            await call.half_close()
        await asyncio.wait([reader])
        error = None if reader.cancelled() else reader.exception()
        if error is not None:
            assert isinstance(error, grpc.aio.AioRpcError)
            failure = Failure.of(error)
            assert failure.code not in (Code.INTERNAL, Code.UNKNOWN), failure
            assert failure.reason, failure

    async def _try_unary(self, name: str, request: bytes) -> None:
        call = self._calls[name](request, timeout=WAIT_S)
        try:
            if _METHODS[name].server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            failure = Failure.of(error)
            if not _is_message(name, request):  # gRPC's own answer, before the server hears of it
                assert failure.code is Code.UNKNOWN
                return
            assert failure.code not in (Code.INTERNAL, Code.UNKNOWN), failure
            assert failure.reason, failure

    async def _check_empty(self) -> None:
        await self._server.settled()
        async with asyncio.timeout(WAIT_S):
            while (load := (await self._server.info()).load).num_pending_tokens or load.kv_arena_used:
                pass


def _is_message(name: str, request: bytes) -> bool:
    try:
        getattr(pb, _METHODS[name].input_type.name).FromString(request)
    except DecodeError:
        return False
    return True
