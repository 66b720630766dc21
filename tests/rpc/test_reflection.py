"""gRPC reflection, v1alpha and v1: enough for a client that has nothing but the address."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from guardwire_server.rpc.server import MODERATION_SERVICE, REFLECTION_V1, SERVICES
from tests.rpc.messages import answer_ids
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S
from tests.tools import skip_without

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
STREAM_REQUESTS: list[dict[str, Any]] = [
    {"open": {"conversation": {"messages": [{"role": "ROLE_USER", "content": "How do I bake bread?"}]}}},
    {"tokens": {"tokenIds": answer_ids(5)}},
    {"finish": {}},
]
CLASSIFY_REQUEST = {"messages": [{"role": "ROLE_USER", "content": "How do I bake bread?"}]}


async def reflect(server: RunningServer, version: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    """One question to a version of the service: both have the same messages."""
    method = server.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call: Any = method(timeout=WAIT_S)
    await call.write(reflection_pb2.ServerReflectionRequest(**request))
    response = await call.read()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return response


@pytest.mark.parametrize("version", [V1ALPHA, REFLECTION_V1])
async def test_services_are_listed(server: RunningServer, version: str) -> None:
    response = await reflect(server, version, list_services="")
    names = [service.name for service in response.list_services_response.service]
    assert sorted(names) == sorted(SERVICES)


@pytest.mark.parametrize("version", [V1ALPHA, REFLECTION_V1])
@pytest.mark.parametrize("symbol", [*SERVICES, "guardwire.v1.ModerateStreamRequest"])
async def test_symbols_are_described(server: RunningServer, version: str, symbol: str) -> None:
    response = await reflect(server, version, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(content)
        for content in response.file_descriptor_response.file_descriptor_proto
    ]
    defined = {f"{file.package}.{service.name}" for file in files for service in file.service}
    defined |= {f"{file.package}.{message.name}" for file in files for message in file.message_type}
    assert symbol in defined


@pytest.mark.parametrize("version", [V1ALPHA, REFLECTION_V1])
async def test_unknown_symbol(server: RunningServer, version: str) -> None:
    response = await reflect(server, version, file_containing_symbol="guardwire.v1.Nothing")
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_can_be_off(start_server: StartServer) -> None:
    server = await start_server(reflection=False)
    for version in (V1ALPHA, REFLECTION_V1):
        call: Any = server.channel.stream_stream(f"/{version}/ServerReflectionInfo")()
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED


class DynamicClient:
    """A client made of what reflection tells; it blocks, so it runs in a thread."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self._service = pool.FindServiceByName(MODERATION_SERVICE)

    def call(self, method_name: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Calls a method with requests as JSON; returns the responses as JSON."""
        method = self._service.FindMethodByName(method_name)
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        streams = method.client_streaming and method.server_streaming
        make = self._channel.stream_stream if streams else self._channel.unary_unary
        stub: Any = make(
            f"/{MODERATION_SERVICE}/{method_name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        messages = [json_format.ParseDict(request, request_class()) for request in requests]
        responses: Iterator[Any] = (
            stub(iter(messages), timeout=WAIT_S) if streams else iter([stub(messages[0], timeout=WAIT_S)])
        )
        return [json_format.MessageToDict(response) for response in responses]


async def test_client_made_of_reflection_alone(server: RunningServer) -> None:
    def talk() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        with grpc.insecure_channel(server.address) as channel:
            client = DynamicClient(channel)
            return client.call("Classify", [CLASSIFY_REQUEST]), client.call("ModerateStream", STREAM_REQUESTS)

    classified, streamed = await asyncio.to_thread(talk)
    assert classified[0]["model"] == "tiny-gen"
    check_stream(streamed)


def check_stream(responses: list[dict[str, Any]]) -> None:
    assert [next(iter(response)) for response in responses[:2]] == ["opened", "promptVerdict"]
    levels = [level for response in responses if "verdicts" in response for level in response["verdicts"]["riskLevels"]]
    assert len(levels) == 5
    assert responses[-1]["summary"]["numTokens"] == "5"


async def test_buf_curl(server: RunningServer) -> None:
    buf = find_buf()
    if buf is None:
        skip_without("`buf`: npm install @bufbuild/buf in .tools, or name the program in BUF")
    (classified,) = await buf_curl(buf, server, "Classify", CLASSIFY_REQUEST)
    assert classified["model"] == "tiny-gen"
    check_stream(await buf_curl(buf, server, "ModerateStream", *STREAM_REQUESTS))


def find_buf() -> str | None:
    """The program, by the environment or in the checkout's tools."""
    installed = Path(__file__).parents[2] / ".tools" / "node_modules" / ".bin" / "buf"
    return shutil.which(os.environ.get("BUF", str(installed)))


async def buf_curl(buf: str, server: RunningServer, method: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Calls a method with `buf curl`, which asks the server itself for the schema."""
    process = await asyncio.create_subprocess_exec(
        buf,
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "--data",
        "@-",
        f"http://{server.address}/{MODERATION_SERVICE}/{method}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate("\n".join(map(json.dumps, requests)).encode()), WAIT_S)
    assert process.returncode == 0, errors.decode()
    decoder, text, responses = json.JSONDecoder(), output.decode().strip(), []
    while text:
        response, end = decoder.raw_decode(text)
        responses.append(response)
        text = text[end:].lstrip()
    return responses
