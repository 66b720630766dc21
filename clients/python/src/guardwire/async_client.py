"""The client for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc
from grpc import aio

from guardwire.async_many import AsyncManyStreams
from guardwire.async_stream import AsyncModerateStream
from guardwire.async_transport import OwnCall
from guardwire.conversation import Messages
from guardwire.convert import requests, responses
from guardwire.convert.server_info import server_info
from guardwire.credentials import call_metadata
from guardwire.enums import ModelKind
from guardwire.options import ModerateKeywords, ModerateOptions
from guardwire.request_size import check_size
from guardwire.results import Classification
from guardwire.server_address import check_target
from guardwire.server_info import ServerInfo
from guardwire.stream_protocol import StreamProtocol
from guardwire.tokenizer import TokenizerDownload
from guardwire.tracing import Metadata, begin_calls, whole_call
from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1.moderation_pb2_grpc import ModerationServiceStub

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from guardwire.v1.moderation_pb2_grpc import ModerationServiceAsyncStub


class AsyncClient:
    """A connection to one Guardwire server.

    It connects with the first call, reconnects by itself, and serves any number of calls and streams at once. Use it as
    `async with`, or `close` it. Owner: one event loop.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 60.0,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        metadata: Metadata = (),
        channel_options: Sequence[tuple[str, Any]] = (),
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        """Makes a client; nothing is sent yet.

        Args:
            target: The server's address, `host:port` without `http://`, or a gRPC name such as
                `dns:///moderation:50051` or `unix:///run/guardwire.sock`.
            timeout_s: The deadline of every call that states none, and of opening a stream; None: no deadline.
            credentials: TLS credentials, as `guardwire.tls_credentials` makes them; None: plain text.
            api_key: The key or token that says who is calling, sent with every call as `authorization: Bearer …`;
                without TLS everybody on the way can read it.
            metadata: Sent with every call too.
            channel_options: gRPC channel arguments.
            tracer_provider: Whose spans the calls get, if OpenTelemetry's API is installed; None: the global one's.

        Raises:
            InvalidRequest: `target` is no such address, or `api_key` is something that cannot be sent.
        """
        check_target(target)
        self._target = target
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._begin = begin_calls(target, call_metadata(metadata, api_key), tracer_provider)
        self._channel_options = list(channel_options)
        self._channel: aio.Channel | None = None
        self._made_stub: ModerationServiceAsyncStub | None = None

    async def classify(
        self, messages: Messages, *, policy: str = "", model: str = "", timeout_s: float | None = None
    ) -> Classification:
        """Judges the last message of a finished conversation.

        Args:
            messages: The conversation, oldest first; a plain string is one user message.
            policy: The name of the policy; empty: the server's default.
            model: The name of the generative model; empty: the one that the server has.
            timeout_s: The deadline; None: the client's.

        Raises:
            GuardwireError: By kind; see `guardwire.errors`.
        """
        request = requests.classify_request(messages, model, policy)
        check_size(request, "messages")
        with whole_call(self._begin("Classify")) as span:
            response = await self._stub().Classify(request, timeout=self._deadline(timeout_s), metadata=span.metadata)
            return responses.classification(response)

    def moderate(
        self, messages: Messages | None = None, *, timeout_s: float | None = None, **options: Unpack[ModerateKeywords]
    ) -> AsyncModerateStream:
        """Judges an answer token by token while it is being written.

        Args:
            messages: The conversation up to the answer; the last message is the user's. None with `token_ids`.
            timeout_s: The deadline of the whole stream; None: none. Opening has the client's deadline.
            **options: The fields of `ModerateOptions`.

        Returns:
            The stream, to be used as `async with` or with `await`.

        Raises:
            InvalidRequest: The conversation has none of the accepted forms, or is larger than a server takes.
            TypeError: An option does not exist.
        """
        protocol = StreamProtocol(messages, ModerateOptions(**options))
        call = OwnCall(
            lambda metadata: self._stub().ModerateStream(timeout=timeout_s, metadata=metadata),
            lambda: self._begin("ModerateStream"),
        )
        return AsyncModerateStream(call, protocol, self._timeout_s)

    def moderate_many(self, *, timeout_s: float | None = None) -> AsyncManyStreams:
        """Judges many answers on one call, so that the tokens of a model's whole step travel as one message.

        Args:
            timeout_s: The deadline of the whole call; None: none. Opening a stream has the client's deadline.

        Returns:
            What opens the streams, to be used as `async with`.
        """
        return AsyncManyStreams(
            lambda metadata: self._stub().ModerateStreams(timeout=timeout_s, metadata=metadata),
            lambda: self._begin("ModerateStreams"),
            self._timeout_s,
        )

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Asks for the server's models, policies, limits and present load; raises GuardwireError."""
        with whole_call(self._begin("GetServerInfo")) as span:
            response = await self._stub().GetServerInfo(
                pb.GetServerInfoRequest(), timeout=self._deadline(timeout_s), metadata=span.metadata
            )
            return server_info(response)

    async def tokenizer_json(
        self, model_kind: ModelKind = ModelKind.STREAM, *, timeout_s: float | None = None
    ) -> bytes:
        """Fetches a model's tokenizer.json and checks it against the server's fingerprint.

        Raises:
            ServerFault: It is not complete, or not the vocabulary that the server says it is.
            GuardwireError: The call failed otherwise.
        """
        request = requests.tokenizer_request(model_kind)
        download = TokenizerDownload()
        with whole_call(self._begin("GetTokenizer")) as span:
            call = self._stub().GetTokenizer(request, timeout=self._deadline(timeout_s), metadata=span.metadata)
            try:
                async for piece in call:
                    download.add(piece)
            finally:
                call.cancel()
            return download.content()

    async def close(self) -> None:
        """Cancels every call that is still open and disconnects; calling again does nothing."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _deadline(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s

    def _stub(self) -> ModerationServiceAsyncStub:
        if self._made_stub is None:  # made here, not in the constructor: a channel belongs to the running event loop
            if self._credentials is None:
                self._channel = aio.insecure_channel(self._target, options=self._channel_options)
            else:
                self._channel = aio.secure_channel(self._target, self._credentials, options=self._channel_options)
            self._made_stub = ModerationServiceStub(self._channel)
        return self._made_stub
