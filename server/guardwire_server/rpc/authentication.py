"""Who calls: asked of every call before its handler, or a byte of its request, is looked at.

Only `grpc.health.v1` answers anybody: the probes of orchestrators and load balancers carry no credentials, and it says
nothing but whether the server serves. Methods that this server does not have are refused as such, with or without a
credential.

A credential is looked at when a call begins, and again for every stream that opens on a call for many: one that expires
or is taken away later ends no open stream, whose life is bounded by `max_lifetime_s`, and opens no other.
"""

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_status import rpc_status

from guardwire_server.access.credentials import (
    CertificateName,
    NameKind,
    PresentedCredentials,
    certificate_name,
    read_bearer,
)
from guardwire_server.access.usage import Tenants, TenantUsage, current_usage, identify_caller
from guardwire_server.core.errors import InvalidField, RequestError
from guardwire_server.engine.faults import internal_error
from guardwire_server.rpc.caller import CURRENT_TENANT
from guardwire_server.rpc.status import to_status

AUTHORIZATION = "authorization"

HEALTH_METHODS = f"/{health.SERVICE_NAME}/"

_CERTIFICATE_PROPERTIES = {
    "peer_dns": NameKind.DNS,
    "peer_uri": NameKind.URI,
    "x509_common_name": NameKind.COMMON_NAME,
}
"""gRPC's names for the fields of a client certificate; they are there only if TLS has verified it."""

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the types alone
FoundHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Parse = Callable[[bytes], Any]


class Authentication(grpc.aio.ServerInterceptor):
    """Lets in whom the rules name, and tells the handler who it is. Thread: the event loop. Keeps nothing itself."""

    def __init__(self, tenants: Tenants, on_refusal: Callable[[RequestError], None] = lambda _: None) -> None:
        """Asks `tenants`; `on_refusal` is told each error that a call is refused with, within the call."""
        self._tenants = tenants
        self._on_refusal = on_refusal

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[FoundHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> FoundHandler:
        """Puts the question before the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH_METHODS):
            return handler
        return self._guarded(handler)

    def _guarded(self, handler: Handler) -> Handler:
        """The same handler for those who are let in. Requests are parsed here, after that, where gRPC would before."""
        serialize, parse = handler.response_serializer, handler.request_deserializer
        if handler.request_streaming:
            if handler.response_streaming:
                guarded = self._streaming(handler.stream_stream, None)
                return grpc.stream_stream_rpc_method_handler(guarded, parse, serialize)
            return grpc.stream_unary_rpc_method_handler(self._unary(handler.stream_unary, None), parse, serialize)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streaming(handler.unary_stream, parse), None, serialize)
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, parse), None, serialize)

    def _unary(self, behaviour: Any, parse: Parse | None) -> Any:  # noqa: ANN401 any handler's
        async def guarded(request: Any, context: Context) -> Any:  # noqa: ANN401
            return await behaviour(await self._let_in(request, parse, context), context)

        return guarded

    def _streaming(self, behaviour: Any, parse: Parse | None) -> Any:  # noqa: ANN401
        """A generator for a generator and a coroutine for a coroutine that writes itself: gRPC tells them apart."""

        async def guarded(request: Any, context: Context) -> None:  # noqa: ANN401
            await behaviour(await self._let_in(request, parse, context), context)

        async def guarded_generator(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            request = await self._let_in(request, parse, context)
            async with contextlib.aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return guarded_generator if inspect.isasyncgenfunction(behaviour) else guarded

    async def _let_in(self, request: Any, parse: Parse | None, context: Context) -> Any:  # noqa: ANN401
        """Says who calls to all that the call does, and gives its request, parsed if it has one; or ends the call."""
        try:
            identify = partial(self._identify, _presented(context))
            usage = identify()
            identify_caller.set(identify)
            current_usage.set(usage)
            CURRENT_TENANT.set(usage.name)
            return request if parse is None else parse(request)
        except RequestError as refusal:
            error = refusal
        except DecodeError:
            error = InvalidField("MALFORMED_REQUEST", "", "not a message of the method's type")
        except Exception:
            error = internal_error("the call could not be let in")
        self._on_refusal(error)
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
        raise AssertionError("a call that was aborted goes on")

    def _identify(self, presented: PresentedCredentials) -> TenantUsage:
        """Whose credentials these are now."""
        return self._tenants.identify(presented, datetime.now(UTC))


def _presented(context: Context) -> PresentedCredentials:
    """What came with a call.

    Raises:
        Unauthenticated: The header is not as it must be.
    """
    metadata = context.invocation_metadata() or ()
    bearer = read_bearer([str(value) for key, value in metadata if key == AUTHORIZATION])
    return PresentedCredentials(bearer, frozenset(_certificate_names(context)))


def _certificate_names(context: Context) -> set[CertificateName]:
    properties = context.auth_context()
    return {
        certificate_name(kind, value.decode(errors="replace"))
        for name, kind in _CERTIFICATE_PROPERTIES.items()
        for value in properties.get(name, ())
    }
