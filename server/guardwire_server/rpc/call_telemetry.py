"""Records every call: the interceptor in front of all others, so that refusals are seen too.

The contributed interceptor of OpenTelemetry does not know handlers that write through the context, as ours do, and
tells cancelled and expired streams as OK; hence our own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health

from guardwire_server.telemetry.calls import Call, CallTelemetry

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # generic in the types alone

EXPIRED_S = 0.01
"""A call that ends as cancelled with less than this left has expired: gRPC tells a handler of both in the same way."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler but those of health, which probes call all the time. Thread: the event loop."""

    def __init__(self, telemetry: CallTelemetry) -> None:
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Gives the handler of a call, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        if handler is None or method.startswith(f"{health.SERVICE_NAME}/"):
            return handler
        call = _Recorded(self._telemetry, method, handler)
        codec = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(call.unary, *codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(call.stream, *codec)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(call.unary, *codec)
        return grpc.stream_stream_rpc_method_handler(call.stream, *codec)


class _Recorded:
    """One handler, recorded."""

    def __init__(self, telemetry: CallTelemetry, method: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> None:
        self._telemetry = telemetry
        self._method = method
        behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        self._behaviour: Any = next(behaviour for behaviour in behaviours if behaviour)

    async def unary(self, request: object, context: Context) -> object:
        """Serves a call with one response."""
        with _Serving(self._telemetry, self._method, context):
            return await self._behaviour(request, context)

    async def stream(self, request: object, context: Context) -> None:
        """Serves a call with many responses, whether its handler yields or writes them."""
        with _Serving(self._telemetry, self._method, context):
            serving: AsyncIterator[Any] | Awaitable[None] = self._behaviour(request, context)
            if isinstance(serving, AsyncIterator):
                async for response in serving:
                    await context.write(response)
            else:
                await serving


class _Serving:
    """One call while it is being served: its context in force, and its end told whatever happens."""

    def __init__(self, telemetry: CallTelemetry, method: str, context: Context) -> None:
        self._call: Call = telemetry.begin(method, tuple(context.invocation_metadata() or ()))
        self._context = context

    def __enter__(self) -> None:
        self._call.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._call.end(_code(self._context, error))


def _code(context: Context, error: BaseException | None) -> str:
    """How a call ended, as the name of a status code."""
    code = _set_code(context)
    if code is None:
        if error is None:
            return grpc.StatusCode.OK.name
        code = grpc.StatusCode.CANCELLED if isinstance(error, asyncio.CancelledError) else grpc.StatusCode.UNKNOWN
    remaining_s = context.time_remaining()
    if code is grpc.StatusCode.CANCELLED and remaining_s is not None and remaining_s < EXPIRED_S:
        return grpc.StatusCode.DEADLINE_EXCEEDED.name
    return code.name


def _set_code(context: Context) -> grpc.StatusCode | None:
    """The status that the handler has set, if any; gRPC gives it as it was set, as a member or as its number."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((member for member in grpc.StatusCode if member.value[0] == code), None) if code else None
