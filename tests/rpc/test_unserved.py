"""What a server does not serve, does not understand, or does not take for its size."""

from typing import Any

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.rpc.server import MAX_REQUEST_BYTES, MODERATION_SERVICE
from tests.rpc.bystander import Bystander
from tests.rpc.messages import answer_ids, opening, text, tokens, user
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.stream_call import Failure

UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


async def tokenizer_failure(server: RunningServer, kind: int) -> Failure:
    request = pb.GetTokenizerRequest(model_kind=kind)  # type: ignore[arg-type]
    return await failure_of(server.stub.GetTokenizer(request).read())


async def test_server_without_a_stream_model(start_server: StartServer) -> None:
    server = await start_server(stream_model="none")
    async with server.stream() as call:
        await call.send(opening())
        failure = await call.failure()
    assert (failure.code, failure.reason) == (UNIMPLEMENTED, "MODEL_NOT_SERVED")
    assert "no stream model" in failure.message
    failure = await failure_of(server.stub.ModerateStreams().read())
    assert (failure.code, failure.reason) == (UNIMPLEMENTED, "MODEL_NOT_SERVED")
    for kind in (pb.MODEL_KIND_UNSPECIFIED, pb.MODEL_KIND_STREAM):
        assert (await tokenizer_failure(server, kind)).reason == "MODEL_NOT_SERVED"
    response = await server.stub.Classify(pb.ClassifyRequest(messages=[user()]))
    assert response.model == "tiny-gen"
    info = await server.info()
    assert [model.kind for model in info.models] == [pb.MODEL_KIND_GEN]
    assert info.load.num_sessions == 0


async def test_server_without_a_gen_model(start_server: StartServer) -> None:
    server = await start_server(gen_model="none")
    failure = await server.classify_failure(pb.ClassifyRequest(messages=[user()]))
    assert (failure.code, failure.reason) == (UNIMPLEMENTED, "MODEL_NOT_SERVED")
    assert "no generative model" in failure.message
    assert (await tokenizer_failure(server, pb.MODEL_KIND_GEN)).reason == "MODEL_NOT_SERVED"
    async with server.stream() as call:
        assert (await call.run(opening())).summary
    assert [model.kind for model in (await server.info()).models] == [pb.MODEL_KIND_STREAM]


async def test_unknown_model_kind(server: RunningServer) -> None:
    failure = await tokenizer_failure(server, 99)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_ENUM_VALUE")
    assert failure.field == "model_kind"
    assert "MODEL_KIND_STREAM, MODEL_KIND_GEN" in failure.message


@pytest.mark.parametrize("kind", [pb.MODEL_KIND_STREAM, pb.MODEL_KIND_GEN])
async def test_tokenizer_comes_whole(server: RunningServer, kind: "pb.ModelKind.ValueType") -> None:
    chunks = [chunk async for chunk in server.stub.GetTokenizer(pb.GetTokenizerRequest(model_kind=kind))]
    content = b"".join(chunk.chunk for chunk in chunks)
    (info,) = [model for model in (await server.info()).models if model.kind == kind]
    assert server.models.stream
    assert content == server.models.stream.tokenizer.json_bytes
    assert (chunks[0].num_bytes, chunks[0].tokenizer_fingerprint) == (len(content), info.tokenizer_fingerprint)


async def test_message_over_four_mebibytes(server: RunningServer, bystander: Bystander) -> None:
    oversized = "x" * MAX_REQUEST_BYTES
    async with server.stream() as call:
        await call.send(opening([user(oversized)]))
        failure = await call.failure()
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_REQUEST_BYTES) in failure.message
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(3)))
        await call.read_verdicts(3)
        await call.send(text(oversized))
        assert (await call.failure()).code == grpc.StatusCode.RESOURCE_EXHAUSTED
    failure = await server.classify_failure(pb.ClassifyRequest(messages=[user(oversized)]))
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_message_just_below_four_mebibytes_is_refused_by_the_server(
    server: RunningServer, bystander: Bystander
) -> None:
    failure = await server.classify_failure(pb.ClassifyRequest(messages=[user("x" * (MAX_REQUEST_BYTES - 100))]))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CONTENT_TOO_LARGE")


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x1a\x03\x0a\x01\xff"], ids=["no message", "not UTF-8"])
async def test_bytes_that_are_no_message(
    server: RunningServer, bystander: Bystander, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    call: Any = server.channel.stream_stream(f"/{MODERATION_SERVICE}/ModerateStream")()
    await call.write(opening().SerializeToString())
    await call.read()
    await call.write(garbage)
    await call.read()  # the prompt verdict, which was on its way
    failure = await failure_of(call.read())
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_unknown_fields_are_ignored(server: RunningServer, bystander: Bystander) -> None:
    unknown_field = b"\xfa\x7f\x03abc"  # number 2047, three bytes
    call: Any = server.channel.unary_unary(f"/{MODERATION_SERVICE}/Classify")
    request = pb.ClassifyRequest(messages=[user()]).SerializeToString() + unknown_field
    response = pb.ClassifyResponse.FromString(await call(request))
    assert response.model == "tiny-gen"


async def test_unknown_method(server: RunningServer) -> None:
    call: Any = server.channel.unary_unary(f"/{MODERATION_SERVICE}/Bless")
    assert (await failure_of(call(b""))).code == UNIMPLEMENTED
