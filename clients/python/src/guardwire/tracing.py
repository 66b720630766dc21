"""Where a client's calls meet the traces of the program around them.

Theory of operation: every call begins a span, is sent with the metadata that the span gives, and ends the span, once,
with what it failed with. OpenTelemetry's API is imported when the first client is made, if it is installed; without it
that metadata is the client's own and ending does nothing, so whoever makes a call need not ask.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from guardwire.errors import translated_errors

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from guardwire.spans import CallSpans
    from guardwire.stream_protocol import StreamProtocol

Metadata = Sequence[tuple[str, str | bytes]]
CallMetadata = tuple[tuple[str, str | bytes], ...]

Started = TypeVar("Started")


class StreamSpan(Protocol):
    """The span of a stream. Owner: the stream."""

    def end(self, failure: BaseException | None, stream: StreamProtocol | None = None) -> None:
        """Ends it; ending again does nothing.

        Args:
            failure: What the stream failed with, or was given up for; None: it ended well.
            stream: What the stream knows of itself; None where it is no stream's.
        """
        ...


class CallSpan(StreamSpan, Protocol):
    """The span of a call. Owner: the call; where that is one stream's, the stream."""

    @property
    def metadata(self) -> CallMetadata:
        """What the call is to be sent with: the client's own metadata, and where the trace goes on."""
        ...

    def begin_stream(self) -> StreamSpan:
        """Begins the span of one of the streams that share the call."""
        ...


BeginCallSpan = Callable[[], CallSpan]


@dataclass(frozen=True, slots=True)
class Untraced:
    """What stands for a span where there is no trace."""

    metadata: CallMetadata = ()

    def begin_stream(self) -> StreamSpan:
        """The same for a stream."""
        return self

    def end(self, failure: BaseException | None, stream: StreamProtocol | None = None) -> None:
        """Does nothing."""


def begin_calls(target: str, metadata: Metadata, tracer_provider: TracerProvider | None) -> Callable[[str], CallSpan]:
    """What begins the span of each call of a client, given the method's name.

    Args:
        target: The server's address, as grpc takes it.
        metadata: What the client sends with every call.
        tracer_provider: Whose spans they are; None: the global provider's, also where it is set later.
    """
    spans = _call_spans()
    if spans is not None:
        return spans(target, tuple(metadata), tracer_provider).begin
    untraced = Untraced(tuple(metadata))
    return lambda _: untraced


def start_call(span: CallSpan, start: Callable[[CallMetadata], Started]) -> Started:
    """Starts a call with the metadata of its span, which ends here if the call cannot even be started."""
    try:
        return start(span.metadata)
    except BaseException as error:
        span.end(error)
        raise


@contextlib.contextmanager
def whole_call(span: CallSpan) -> Iterator[CallSpan]:
    """A call that is over with the block: its grpc errors are translated, and its span ends with them."""
    try:
        with translated_errors():
            yield span
    except BaseException as error:
        span.end(error)
        raise
    span.end(None)


@functools.cache
def _call_spans() -> type[CallSpans] | None:
    try:
        from guardwire.spans import CallSpans
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        return None
    return CallSpans
