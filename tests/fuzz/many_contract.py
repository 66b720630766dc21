"""A call of ModerateStreams as the contract has it, and what its caller is told."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from guardwire.v1 import moderation_pb2 as pb
from tests.fuzz.contract import Contract
from tests.fuzz.endings import GONE, MUST_NAME_A_FIELD, check_end, check_refusal
from tests.fuzz.live_calls import run
from tests.fuzz.sequences import Ending, Sequence
from tests.fuzz.served import Code, Faults, Served
from tests.fuzz.told import Told
from tests.fuzz.tried_server import TriedServer
from tests.rpc.stream_call import Failure, Received

MAX_STEP_TOKENS = 16_384
"""protos/guardwire/v1/moderation.proto, `TokenStep.stream_ids`."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass
class ExpectedStream:
    """What is sent under one stream id.

    Messages before an `open` are refused one by one: `refusals`. Once the stream may have ended, or its `open` was
    refused, what becomes of the messages that follow depends on when they arrive: `has_late`.
    """

    contract: Contract | None = None
    refusals: list[tuple[Faults, set[str]]] = field(default_factory=list)
    is_refused: bool = False
    has_late: bool = False

    def take(self, served: Served, request: pb.ModerateStreamRequest, kind: str) -> None:
        """Takes the next message; `kind` is what an error may call it besides its own name."""
        if self.is_refused:
            self.has_late = True
            return
        if self.contract is None:
            opened = Contract(served)
            opened.take(request)
            if opened.faults:
                self.refusals.append((opened.faults, opened.kinds | {kind}))
                self.is_refused = request.HasField("open")
            else:
                self.contract = opened
            return
        self.has_late |= self.contract.is_over or self.contract.is_finished or self.contract.may_be_blocked
        if not self.contract.is_over:
            self.contract.take(request)
            self.contract.kinds.add(kind)


class ManyContract:
    """Follows the messages of one call. `faults`: what the call itself may end with."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.streams: dict[int, ExpectedStream] = defaultdict(ExpectedStream)
        self.faults: Faults = set()

    def take(self, message: pb.ModerateStreamsRequest) -> None:
        """Takes the next message; those behind a malformed one do not count."""
        if self.faults:
            return
        for item in message.requests:
            self.streams[item.stream_id].take(self._served, item.request, "request")
        stream_ids, token_ids = message.step.stream_ids, message.step.token_ids
        if len(stream_ids) != len(token_ids) or len(token_ids) > MAX_STEP_TOKENS:
            self.faults = {Code.INVALID_ARGUMENT}
            return
        for stream_id, token_id in zip(stream_ids, token_ids, strict=True):
            request = pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=[token_id]))
            self.streams[stream_id].take(self._served, request, "step")


@dataclass
class ToldStream:
    """What is told under one stream id: streams, one after another, and refusals of what was no stream's."""

    streams: list[tuple[Told, Failure | None]] = field(default_factory=list)
    refusals: list[Failure] = field(default_factory=list)
    open_one: Told | None = None

    def end(self, failure: Failure | None) -> None:
        """The open stream has ended."""
        assert self.open_one is not None
        self.streams.append((self.open_one, failure))
        self.open_one = None


class ManyTold(Received):
    """What the caller of one call is told, taken apart by streams and checked for its order as it comes."""

    def __init__(self, contract: ManyContract) -> None:
        super().__init__()
        self._contract = contract
        self.streams: dict[int, ToldStream] = defaultdict(ToldStream)

    def take(self, response: Any) -> None:  # noqa: ANN401 of ModerateStreams here
        """Takes a message: its packed part first."""
        message: pb.ModerateStreamsResponse = response
        assert message.responses or message.step.stream_ids
        self.kinds.append("message")
        for stream_id, told in _unpacked(message.step):
            self._take_one(stream_id, told)
        for item in message.responses:
            if item.HasField("error"):
                self._take_error(self.streams[item.stream_id], item.error)
            else:
                self._take_one(item.stream_id, item.response)

    def _take_one(self, stream_id: int, response: pb.ModerateStreamResponse) -> None:
        stream = self.streams[stream_id]
        if response.HasField("opened"):
            assert stream.open_one is None, "the one before has ended"
            contract = self._contract.streams[stream_id].contract
            is_known = contract is not None and not stream.streams
            stream.open_one = Told.by(contract) if contract and is_known else Told(may_skip=True)
        assert stream.open_one is not None, "nothing is told of a stream that is not open"
        stream.open_one.take(response)
        if response.HasField("summary"):
            stream.end(None)

    def _take_error(self, stream: ToldStream, error: pb.StreamError) -> None:
        failure = Failure(_CODES[error.code], error.reason, error.field, error.message, None, "")
        assert failure.code not in (Code.INTERNAL, Code.UNKNOWN)
        assert failure.reason
        assert failure.field or failure.code not in MUST_NAME_A_FIELD
        if stream.open_one is None:
            stream.refusals.append(failure)
        else:
            stream.end(failure)


def _unpacked(step: pb.StepVerdicts) -> Iterator[tuple[int, pb.ModerateStreamResponse]]:
    """Each packed verdict as a response of its own."""
    for stream_id, *verdict in zip(
        step.stream_ids,
        step.token_indices,
        step.risk_levels,
        step.safe_probabilities,
        step.controversial_probabilities,
        step.unsafe_probabilities,
        step.categories,
        step.category_probabilities,
        strict=True,
    ):
        index, level, safe, controversial, unsafe, category, category_probability = verdict
        yield (
            stream_id,
            pb.ModerateStreamResponse(
                verdicts=pb.Verdicts(
                    start_index=index,
                    risk_levels=[level],
                    safe_probabilities=[safe],
                    controversial_probabilities=[controversial],
                    unsafe_probabilities=[unsafe],
                    categories=[category],
                    category_probabilities=[category_probability],
                )
            ),
        )


async def check_many_streams(trial: TriedServer, sequence: Sequence) -> None:
    """One call of ModerateStreams: what each stream is told, and how it ends."""
    contract = ManyContract(trial.served)
    for message in sequence.requests:
        contract.take(message)
    told = ManyTold(contract)
    call: Any = trial.server.stub.ModerateStreams(timeout=sequence.timeout_s)
    failure = await run(trial.server, call, told, sequence, closes=True)
    if failure and failure.reason:
        check_refusal(failure, contract.faults, {"step"})
    elif failure:
        assert sequence.ending in (Ending.CANCEL, Ending.DEADLINE)
        assert failure.code in GONE
    else:
        assert not contract.faults
        for stream_id, expected in contract.streams.items():
            check_one(sequence.ending, expected, told.streams[stream_id])
    assert told.streams.keys() <= contract.streams.keys()


def check_one(ending: Ending, expected: ExpectedStream, told: ToldStream) -> None:
    """Whether all that was sent under one stream id was answered as the contract says."""
    errors = [*told.refusals, *(failure for _, failure in told.streams if failure)]
    if any(failure.code is Code.RESOURCE_EXHAUSTED for failure in errors):
        return  # which of its messages found no stream depends on the other calls
    assert told.open_one is None, "the call has ended well"
    if expected.contract is not None:
        first, failure = told.streams[0]
        check_end(ending, expected.contract, first, failure)
    assert len(told.refusals) >= len(expected.refusals)
    if not expected.has_late:
        assert len(told.streams) == (expected.contract is not None)
        assert len(told.refusals) == len(expected.refusals)
    for failure, (codes, kinds) in zip(told.refusals, expected.refusals, strict=False):
        check_refusal(failure, codes, kinds)
