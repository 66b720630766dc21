"""One session that is fed with raw bytes, and a caller that is told what comes of them."""

from google.protobuf.message import DecodeError

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core import events as ev
from guardwire_server.core.errors import CallerError, InvalidField, RequestError
from guardwire_server.rpc.requests import RequestReader
from guardwire_server.rpc.responses import StreamWriter, stream_error
from guardwire_server.rpc.status import STATUS_CODES, to_status
from tests.core.simulated_engine import Stream, single_token
from tests.fuzz.contract import Contract
from tests.fuzz.endings import UNREADABLE, check_end
from tests.fuzz.sequences import Ending
from tests.fuzz.served import Code, Served
from tests.fuzz.told import Told
from tests.rpc.stream_call import Failure


class RawConversation:
    """Owner of the session, its engine, and the contract that follows it; for one input."""

    def __init__(self, reader: RequestReader, writer: StreamWriter, served: Served, *, has_short_ways: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = Stream(short_ways=has_short_ways)
        self._contract = Contract(served)
        self._told = Told()
        self._num_told = 0

    def take(self, piece: bytes) -> None:
        """Hands the session what a call would make of these bytes; once the stream has ended, nothing."""
        if self._stream.ends:
            return
        try:
            request = pb.ModerateStreamRequest.FromString(piece)
        except DecodeError:
            event: ev.CallerEvent = ev.InputRefused(InvalidField(UNREADABLE, "", "not a ModerateStreamRequest"))
            self._contract.faults = self._contract.faults or {Code.INVALID_ARGUMENT}
        else:
            self._contract.take(request)
            try:
                event = self._reader.stream_event(request)
            except CallerError as error:
                event = ev.InputRefused(error)
            assert self._reader.single_token(request) == single_token(event)
        self._stream.send(event)
        if not self._stream.session.wants_input:
            self._stream.settle()
        self._tell()

    def advance(self, bits: int) -> None:
        """Lets the engine get further: 0 to 3 commands, 0 to 3 tokens, and all results of them."""
        engine = self._stream.engine
        for _ in range(bits & 3):
            if engine.inbox:
                engine.apply()
        engine.judge(bits >> 2)
        while engine.outbox and not self._stream.ends:
            self._stream.deliver()
        self._tell()

    def end(self) -> None:
        """The caller closes its half; checks how the stream ends."""
        if not self._stream.ends:
            self._stream.send(ev.InputEnded())
            self._stream.settle()
            self._tell()
        error = self._stream.error
        assert error is None or isinstance(error, RequestError)
        check_end(Ending.HALF_CLOSE, self._contract, self._told, _failure(error) if error else None)

    def _tell(self) -> None:
        """Tells the caller what is new, as it comes over the wire."""
        updates, self._num_told = self._stream.updates[self._num_told :], len(self._stream.updates)
        for update in updates:
            if isinstance(update, ev.StreamOpened):
                self._told = Told.by(self._contract)
            sent = self._writer.response(update).SerializeToString()
            self._told.take(pb.ModerateStreamResponse.FromString(sent))


def _failure(error: RequestError) -> Failure:
    """An error as a caller sees it, on both kinds of calls."""
    status, told = to_status(error), stream_error(error)
    assert (status.code, status.message) == (told.code, told.message)
    assert told.reason == error.reason
    return Failure(STATUS_CODES[type(error)], told.reason, told.field, told.message, None, "")
