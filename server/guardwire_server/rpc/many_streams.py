"""Many streams on one call: what ModerateStreams adds to ModerateStream.

Each stream is a session like any other; here is only who speaks for which one. All that the streams of a call have to
tell goes into one message, and while that is being written the next one gathers. An error belongs to its stream and
ends no other.

A stream that pushes faster than it is judged, or a caller who does not read, holds the whole call's input back: the
streams of a call share its flow control. A message may hold a lot of work, so between its requests others have a turn.

The call may outlive its caller's credential, which is therefore asked for again by every stream that opens.
"""

import asyncio
import contextlib
from array import array
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from functools import partial

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.access.metering import Meter
from guardwire_server.access.usage import Place, TenantUsage, renewed_usage
from guardwire_server.core.errors import RequestError
from guardwire_server.core.events import CallerEvent, InputEnded, InputRefused, OpenRequested, TokenVerdicts
from guardwire_server.core.transitions import State, wrong_state
from guardwire_server.core.verdict import VerdictArrays
from guardwire_server.engine.session_manager import SessionManager
from guardwire_server.engine.stream_session import StreamSession
from guardwire_server.rpc.caller import tenant_name
from guardwire_server.rpc.catalogue import RequestLimits, ServedModel
from guardwire_server.rpc.requests import MAX_STEP_TOKENS, RequestReader
from guardwire_server.rpc.responses import StreamWriter, stream_error
from guardwire_server.rpc.step_writer import StepWriter
from guardwire_server.telemetry.server import ServerTelemetry

MAX_RESPONSES, MAX_TOKENS = 1024, 65_536
"""Responses and tokens in one message (its last response may go beyond the latter). A token takes 18 bytes, packed up
to 33, and a response without tokens under a kilobyte, which stays below the 4 MiB that gRPC lets a caller receive."""


MAX_TURN_S = 0.01
"""How long the requests of one message may keep the event loop at a time."""


class ManyStreams:
    """The streams of one call. Owner: the call. Thread: the event loop.

    Invariants: `_streams` holds the open ones, `_news` those of them that may have something to tell, in the order in
    which they came to have it. `_step` is what will be told next in packed form; it goes before all news.
    """

    def __init__(
        self,
        manager: SessionManager,
        reader: RequestReader,
        model: ServedModel,
        limits: RequestLimits,
        usage: TenantUsage,
        telemetry: ServerTelemetry,
    ) -> None:
        self._usage = usage
        self._meter = Meter(usage, manager.renderer)
        self._telemetry = telemetry
        self._tenant = tenant_name()
        self._observe = telemetry.stream_observers(model.name, self._tenant, has_own_call=False)
        self._manager = manager
        self._reader = reader
        self._model = model
        self._limits = limits
        self._streams: dict[int, tuple[StreamSession, StreamWriter, Place]] = {}
        self._news: OrderedDict[int, None] = OrderedDict()  # a plain one finds its first slower the more have left it
        self._refusals: deque[pb.StreamResponse] = deque()
        self._changed = asyncio.Event()
        self._has_input = True
        self._packs = False  # whether the caller has sent a packed message, and so reads them
        self._step, self._max_step_tokens = StepWriter(), 0

    async def take(self, message: pb.ModerateStreamsRequest) -> None:
        """Takes a message; returns when the next one may come.

        Raises:
            InvalidField: If the packed part is malformed.
        """
        self._reader.check_num_requests(len(message.requests))
        turn_ends_s = self._manager.now_s() + MAX_TURN_S
        held = [item.stream_id for item in message.requests]
        for item in message.requests:
            if (event := self._take_one(item)) is not None:
                await self._open(self._streams[item.stream_id][0], event)
            if self._manager.now_s() > turn_ends_s:
                await asyncio.sleep(0)
                turn_ends_s = self._manager.now_s() + MAX_TURN_S
        if message.HasField("step"):
            self._packs = True
            self._limit_step()
            step = self._reader.token_step(message.step)
            num_taken = self._usage.take_some_tokens(len(step))
            held += self._take_step(step if num_taken == len(step) else step[:num_taken])
            held += self._refuse_step(step[num_taken:])
        while (held := [stream_id for stream_id in held if self._is_held(stream_id)]) or self._must_tell_first:
            self._changed.clear()
            await self._changed.wait()

    def end_input(self) -> None:
        """The caller sends nothing more; streams that did not finish are abandoned."""
        self._has_input = False
        for stream, _, _ in self._streams.values():
            stream.handle(InputEnded())
        self._changed.set()

    async def responses(self) -> AsyncIterator[pb.ModerateStreamsResponse]:
        """What to tell the caller, until the input has ended and every stream, too.

        Raises:
            Draining: The server has stopped, and no stream is left that could be told so.
        """
        with self._manager.tells_of_cut(self._changed):
            while self._has_input or self._streams or self._refusals:
                message = self._gather()
                if message.responses or message.HasField("step"):
                    self._changed.set()  # there is room for more input now
                    yield message
                    continue
                if not self._streams:
                    self._manager.require_not_cut()
                self._changed.clear()
                await self._changed.wait()

    def close(self) -> None:
        """Forgets every stream that is still open."""
        for stream, _, place in self._streams.values():
            stream.close()
            place.release()
        self._streams.clear()

    def _take_one(self, item: pb.StreamRequest) -> OpenRequested | None:
        """Hands a stream its message, or returns it if it is the first one, which may take a while."""
        known = self._streams.get(item.stream_id)
        try:
            if known is not None and (token_id := self._reader.single_token(item.request)) is not None:
                if known[0].hears:
                    self._meter.take_token()
                known[0].push(token_id)
                return None
            event: CallerEvent = self._reader.stream_event(item.request)
            if known is not None and known[0].hears:  # to count what goes nowhere would be work for nothing
                self._meter.take_pushed(event)
        except RequestError as error:
            event = InputRefused(error)
        if isinstance(event, OpenRequested):
            return event if known is not None or self._admit(item.stream_id) else None
        self._handle(item.stream_id, event)
        return None

    async def _open(self, stream: StreamSession, event: OpenRequested) -> None:
        """Hands a stream its first message."""
        try:
            event = await self._meter.take_prompt(event)
        except RequestError as error:
            stream.handle(InputRefused(error))
        else:
            await stream.handle_open(event)

    def _take_step(self, step: Sequence[tuple[int, int]]) -> list[int]:
        """Hands each stream its token; all that are nothing but one more token go to the engine as one message.

        Returns:
            The streams that may hold the input back now.
        """
        now_s, streams, vocabulary_size = self._manager.now_s(), self._streams, self._reader.vocabulary_size
        seq_ids, token_ids, held = list[int](), array("i"), list[int]()
        for index, (stream_id, token_id) in enumerate(step):
            known = streams.get(stream_id)
            if known and token_id < vocabulary_size and (stream := known[0]).push_token(token_id, now_s):
                seq_ids.append(stream.seq_id)
                token_ids.append(token_id)
                if not stream.listens:
                    held.append(stream_id)
                continue
            if seq_ids:  # what follows must not overtake what came before
                self._manager.send_step(seq_ids, token_ids)
                seq_ids, token_ids = [], array("i")
            self._handle(stream_id, self._reader.step_event(token_id, index))
            held.append(stream_id)
        if seq_ids:
            self._manager.send_step(seq_ids, token_ids)
        return held

    def _refuse_step(self, step: Sequence[tuple[int, int]]) -> list[int]:
        """Ends the streams of those tokens that the tenant may not push now; returns them."""
        if step:
            error = self._usage.too_fast(len(step))
            for stream_id, _ in step:
                self._handle(stream_id, InputRefused(error))
        return [stream_id for stream_id, _ in step]

    def _handle(self, stream_id: int, event: CallerEvent) -> None:
        """Hands a stream an event that is no `open`; the caller is told if there is no such stream."""
        known = self._streams.get(stream_id)
        if known is not None:
            known[0].handle(event)
        elif isinstance(event, InputRefused):
            self._refuse(stream_id, event.error)
        else:
            self._refuse(stream_id, wrong_state(State.AWAITING_OPEN, event))

    def _admit(self, stream_id: int) -> bool:
        """Opens a stream; False, and the caller is told, if that cannot be."""
        with contextlib.ExitStack() as undone:
            try:
                self._renew_usage()
                place = undone.enter_context(self._usage.admit_stream())
                stream = self._manager.open(
                    self._observe,
                    on_change=partial(self._note, stream_id),
                    on_verdict=partial(self._take_verdict, stream_id),
                )
            except RequestError as error:
                self._refuse(stream_id, error)
                return False
            undone.pop_all()
        self._streams[stream_id] = stream, StreamWriter(stream.session_id, self._model, self._limits), place
        self._limit_step()
        return True

    def _renew_usage(self) -> None:
        """Asks again whose call this is."""
        usage = renewed_usage(self._usage)
        if usage is not self._usage:
            self._usage, self._meter = usage, Meter(usage, self._manager.renderer)

    def _refuse(self, stream_id: int, error: RequestError) -> None:
        self._telemetry.calls.rejected(error, self._tenant)
        self._refusals.append(pb.StreamResponse(stream_id=stream_id, error=stream_error(error)))
        self._changed.set()

    @property
    def _must_tell_first(self) -> bool:
        """Whether so many refusals or verdicts wait that the caller should read some before it causes more."""
        return len(self._refusals) >= MAX_RESPONSES or (bool(self._step) and len(self._step) >= self._max_step_tokens)

    def _limit_step(self) -> None:
        """Says how many verdicts may wait in packed form: as many as updates of every stream may, if they are read."""
        limit = self._manager.limits.max_queued_updates * len(self._streams)
        self._max_step_tokens = min(limit, MAX_STEP_TOKENS) if self._packs else 0

    def _is_held(self, stream_id: int) -> bool:
        return stream_id in self._streams and self._streams[stream_id][0].is_held

    def _note(self, stream_id: int) -> None:
        if stream_id not in self._streams:
            return  # it has ended and left while its first message was being read
        self._news[stream_id] = None
        self._changed.set()

    def _take_verdict(self, stream_id: int, token_index: int, verdicts: VerdictArrays, entry: int) -> bool:
        """Takes what a stream has to tell next right into the next packed message, if the caller reads those."""
        num_waiting = len(self._step)
        if num_waiting >= self._max_step_tokens:
            return False
        self._step.add(stream_id, token_index, verdicts, entry)
        if not num_waiting:
            self._changed.set()  # whoever gathers takes all that has come by then
        return True

    def _gather(self) -> pb.ModerateStreamsResponse:
        """The next responses, as many as a message takes; a stream whose last one this is leaves."""
        message = pb.ModerateStreamsResponse()
        step, self._step = self._step, StepWriter()
        responses, num_tokens = message.responses, len(step)
        while self._refusals and len(responses) < MAX_RESPONSES:
            responses.append(self._refusals.popleft())
        while self._news and len(responses) < MAX_RESPONSES and num_tokens < MAX_TOKENS:
            stream_id, _ = self._news.popitem(last=False)
            stream, writer, place = self._streams[stream_id]
            packs = self._packs
            while (
                len(responses) < MAX_RESPONSES
                and num_tokens < MAX_TOKENS
                and (update := stream.take_update()) is not None
            ):
                if packs and (num_packed := step.take(stream_id, update)):
                    num_tokens += num_packed
                    continue
                packs = False  # what is packed is read first, so what follows a response cannot be
                writer.write(update, responses.add(stream_id=stream_id).response)
                num_tokens += len(update.verdicts) if isinstance(update, TokenVerdicts) else 0
            if stream.has_updates:
                self._news[stream_id] = None
            elif stream.ended:
                if stream.ended.error:
                    self._telemetry.calls.rejected(stream.ended.error, self._tenant)
                    responses.add(stream_id=stream_id, error=stream_error(stream.ended.error))
                del self._streams[stream_id]
                self._limit_step()
                stream.close()
                place.release()
        if step:
            step.write(message.step)
        return message
