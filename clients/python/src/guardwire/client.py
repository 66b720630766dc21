"""The client for threads."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc

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
from guardwire.stream import ModerateStream
from guardwire.stream_protocol import StreamProtocol
from guardwire.tokenizer import TokenizerDownload
from guardwire.tracing import Metadata, begin_calls, whole_call
from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1.moderation_pb2_grpc import ModerationServiceStub

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider


class Client:
    """A connection to one Guardwire server: the twin of `AsyncClient` for code without asyncio.

    It connects with the first call, reconnects by itself, and serves any number of threads at once. Use it as `with`,
    or `close` it.
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
        self._timeout_s = timeout_s
        self._begin = begin_calls(target, call_metadata(metadata, api_key), tracer_provider)
        options = list(channel_options)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self._stub = ModerationServiceStub(self._channel)

    def classify(
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
            response = self._stub.Classify(request, timeout=self._deadline(timeout_s), metadata=span.metadata)
            return responses.classification(response)

    def moderate(
        self, messages: Messages | None = None, *, timeout_s: float | None = None, **options: Unpack[ModerateKeywords]
    ) -> ModerateStream:
        """Judges an answer token by token while it is being written.

        Args:
            messages: The conversation up to the answer; the last message is the user's. None with `token_ids`.
            timeout_s: The deadline of the whole stream; None: none. Opening has the client's deadline.
            **options: The fields of `ModerateOptions`.

        Returns:
            The stream, to be used as `with`.

        Raises:
            InvalidRequest: The conversation has none of the accepted forms, or is larger than a server takes.
            TypeError: An option does not exist.
        """
        protocol = StreamProtocol(messages, ModerateOptions(**options))
        return ModerateStream(
            lambda metadata, pushed: self._stub.ModerateStream(pushed, timeout=timeout_s, metadata=metadata),
            lambda: self._begin("ModerateStream"),
            protocol,
            self._timeout_s,
        )

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Asks for the server's models, policies, limits and present load; raises GuardwireError."""
        with whole_call(self._begin("GetServerInfo")) as span:
            response = self._stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=self._deadline(timeout_s), metadata=span.metadata
            )
            return server_info(response)

    def tokenizer_json(self, model_kind: ModelKind = ModelKind.STREAM, *, timeout_s: float | None = None) -> bytes:
        """Fetches a model's tokenizer.json and checks it against the server's fingerprint.

        Raises:
            ServerFault: It is not complete, or not the vocabulary that the server says it is.
            GuardwireError: The call failed otherwise.
        """
        request = requests.tokenizer_request(model_kind)
        download = TokenizerDownload()
        with whole_call(self._begin("GetTokenizer")) as span:
            call = self._stub.GetTokenizer(request, timeout=self._deadline(timeout_s), metadata=span.metadata)
            try:
                for piece in call:
                    download.add(piece)
            finally:
                call.cancel()
            return download.content()

    def close(self) -> None:
        """Cancels every call that is still open and disconnects; calling again does nothing."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> float | None:
        return self._timeout_s if timeout_s is None else timeout_s
