"""Whole sequences over live calls, checked against the contract."""

import asyncio
from typing import TYPE_CHECKING

import grpc

from tests.fuzz.contract import Contract
from tests.fuzz.endings import GONE, check_end
from tests.fuzz.sequences import Ending, Sequence
from tests.fuzz.told import Told
from tests.fuzz.tried_server import TriedServer
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S, Failure, Received, StreamCall

if TYPE_CHECKING:
    from tests.rpc.stream_call import Call


async def run(
    server: RunningServer, call: "Call", received: Received, sequence: Sequence, *, closes: bool = False
) -> Failure | None:
    """Sends all of a sequence and takes all that comes; returns how the call failed, if it did.

    `closes` says that the caller closes its half when it has finished, since the call itself does not end then.
    """
    async with asyncio.timeout(WAIT_S):
        stream = StreamCall(call)
        stream.received = received
        reader = asyncio.create_task(stream.read_all())
        try:
            await stream.send(*sequence.requests)
            if sequence.ending is Ending.CANCEL:
                for _ in range(sequence.num_waits):
                    await server.info()
                stream.cancel()
            elif sequence.ending is Ending.HALF_CLOSE or (closes and sequence.ending is Ending.FINISH):
                await stream.half_close()
            await asyncio.wait([reader])
        finally:
            stream.cancel()
            reader.cancel()
    if reader.cancelled():  # as reading from a cancelled call is
        return Failure(grpc.StatusCode.CANCELLED, "", "", "", None, "")
    error = reader.exception()
    if isinstance(error, grpc.aio.AioRpcError):
        return _failure(error)
    if error:
        raise error
    return None


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    """How a call failed, with two races of the caller's own library put right.

    A write that a deadline overtakes can end the call as INTERNAL (tests.rpc.stream_call says more), and a deadline
    that passes while the server's status comes in leaves that one's details.
    """
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return Failure(grpc.StatusCode.CANCELLED, "", "", "", None, "")
    try:
        return Failure.of(error)
    except ValueError:
        assert error.code() in GONE
        return Failure(error.code(), "", "", "", None, "")


async def check_stream(trial: TriedServer, sequence: Sequence) -> None:
    """One call of ModerateStream: what it is told, and how it ends."""
    contract = Contract(trial.served)
    for request in sequence.requests:
        contract.take(request)
    told = Told.by(contract)
    call = trial.server.stub.ModerateStream(timeout=sequence.timeout_s)
    failure = await run(trial.server, call, told, sequence)
    check_end(sequence.ending, contract, told, failure)
