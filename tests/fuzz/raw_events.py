"""Raw bytes into the server's reading of requests, and what comes of them into a session, without a network.

The first byte says which call these bytes are sent on. Those of a stream are pieces (tests.fuzz.raw_pieces): between
them the session's engine gets further, as their bits say.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.errors import CallerError
from guardwire_server.core.policy_set import built_in_policies
from guardwire_server.rpc.catalogue import Catalogue, RequestLimits, ServedModel
from guardwire_server.rpc.requests import RequestReader
from guardwire_server.rpc.responses import StreamWriter
from guardwire_server.rpc.status import STATUS_CODES
from tests.core.fakes import FakeRenderer
from tests.core.simulated_engine import LIMITS as SESSION_LIMITS
from tests.fuzz.choices import Choices
from tests.fuzz.messages import BLANKS, PIECES
from tests.fuzz.raw_conversation import RawConversation
from tests.fuzz.raw_pieces import join, split
from tests.fuzz.sequences import NUM_BYTES, SequenceMaker
from tests.fuzz.served import Faults, Served

NUM_SEEDS = 64

_VOCABULARY_SIZE = 2**21  # the fake tokenizer's ids are characters
_MAX_TOKENS, _MAX_BYTES, _MAX_MESSAGES = 32, 100, 6
_MODEL = ServedModel(
    name="tiny",
    revision="1",
    tokenizer_fingerprint="f",
    tokenizer_json=b"{}",
    vocabulary_size=_VOCABULARY_SIZE,
    max_context_tokens=SESSION_LIMITS.max_context_tokens,
    prompt_categories=(),
    response_categories=(),
    dtype="float32",
    device="cpu",
    is_demo=False,
)
_LIMITS = RequestLimits(
    max_sessions=1,
    max_classify_calls=1,
    max_tokens_per_message=_MAX_TOKENS,
    max_message_bytes=_MAX_BYTES,
    max_messages=_MAX_MESSAGES,
    idle_timeout_s=SESSION_LIMITS.idle_timeout_s,
    max_lifetime_s=SESSION_LIMITS.max_lifetime_s,
    write_timeout_s=1.0,
)
_SERVED = Served(
    stream_model=pb.ModelInfo(
        name=_MODEL.name,
        tokenizer_fingerprint=_MODEL.tokenizer_fingerprint,
        vocabulary_size=_VOCABULARY_SIZE,
        max_context_tokens=_MODEL.max_context_tokens,
    ),
    gen_model=pb.ModelInfo(name=_MODEL.name),
    limits=pb.Limits(max_tokens_per_message=_MAX_TOKENS, max_message_bytes=_MAX_BYTES, max_messages=_MAX_MESSAGES),
    policies=tuple(built_in_policies().policies),
    renderer=FakeRenderer(),
    turn_control_ids=frozenset(),  # the fake template lets users say them
)

M = TypeVar("M", bound=Message)


class EventsTarget:
    """Keeps nothing between inputs."""

    words = PIECES + BLANKS

    def __init__(self) -> None:
        self._reader = RequestReader(Catalogue("1", _MODEL, _MODEL, built_in_policies, _LIMITS))
        self._writer = StreamWriter("session", _MODEL, _LIMITS)
        self._calls: tuple[Callable[[bytes], None], ...] = (
            self._stream,
            self._stream_by_short_ways,
            self._many_streams,
            self._classify,
            self._tokenizer,
        )

    def seeds(self) -> Iterator[bytes]:
        """Good streams, and a good message of each other kind."""
        maker, random = SequenceMaker(_SERVED), Random(0)
        for number in range(NUM_SEEDS):
            sequence = maker.stream(Choices(random.randbytes(NUM_BYTES)))
            pieces = [(random.randrange(16), request.SerializeToString()) for request in sequence.requests]
            yield bytes((number % 2,)) + join(pieces)
        for number, kind in enumerate((pb.ModerateStreamsRequest, pb.ClassifyRequest, pb.GetTokenizerRequest), 2):
            message: Message = maker.messages.near(Choices(random.randbytes(NUM_BYTES)), kind)
            yield bytes((number,)) + message.SerializeToString()

    def try_input(self, data: bytes) -> None:
        """Reads one input; raises if more than an error of the caller comes of it."""
        if data:
            self._calls[data[0] % len(self._calls)](data[1:])

    def close(self) -> None:
        """Nothing is left to check."""

    def _stream(self, data: bytes, *, has_short_ways: bool = False) -> None:
        conversation = RawConversation(self._reader, self._writer, _SERVED, has_short_ways=has_short_ways)
        for bits, piece in split(data):
            conversation.take(piece)
            conversation.advance(bits)
        conversation.end()

    def _stream_by_short_ways(self, data: bytes) -> None:
        self._stream(data, has_short_ways=True)

    def _many_streams(self, data: bytes) -> None:
        message = _parsed(pb.ModerateStreamsRequest, data)
        step = message.step
        if not _faults(self._reader.token_step, step):
            for index, token_id in enumerate(step.token_ids):
                self._reader.step_event(token_id, index)
        for item in message.requests:
            assert _faults(self._reader.stream_event, item.request) <= _SERVED.stream_faults(item.request)

    def _classify(self, data: bytes) -> None:
        message = _parsed(pb.ClassifyRequest, data)
        faults, expected = _faults(self._reader.classify, message), _SERVED.classify_faults(message)
        assert faults <= expected
        assert bool(faults) is bool(expected)

    def _tokenizer(self, data: bytes) -> None:
        message = _parsed(pb.GetTokenizerRequest, data)
        is_listed = message.model_kind in pb.ModelKind.values()
        assert bool(_faults(self._reader.tokenizer_model, message)) is not is_listed


def _parsed(kind: type[M], data: bytes) -> M:
    """A message of these bytes; an empty one if they are none, as the call would not get them."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return kind()


def _faults(read: Callable[[M], object], message: M) -> Faults:
    """The status that a reading would be refused with, if it is."""
    refusal: CallerError | None = None
    try:
        read(message)
    except CallerError as error:
        refusal = error
    if refusal is None:
        return set()
    assert refusal.field
    assert refusal.message.startswith(f"{refusal.field}: ")
    return {STATUS_CODES[type(refusal)]}
