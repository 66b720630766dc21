"""Who may call, over a live server: every RPC, with every kind of credential."""

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.access.credentials import MAX_AUTHORIZATION_BYTES
from guardwire_server.access.rules import AccessRules
from guardwire_server.rpc.server import MODERATION_SERVICE, REFLECTION_V1
from tests.access.access_file import ACME_KEY, BETA_KEY, FORMER_KEY, AccessFile
from tests.access.bad_tokens import BAD_TOKENS, TOKENS_OF_NO_TENANT
from tests.access.issuer import Issuer
from tests.rpc.keyed import Metadata, bearer, caller, outcome
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import (
    answer_ids,
    opening,
    tokens,
    user,
)
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S

REFUSED = grpc.StatusCode.UNAUTHENTICATED
SERVICE = pb.DESCRIPTOR.services_by_name["ModerationService"]
CHANNELZ = "/grpc.channelz.v1.Channelz/GetServers"
METHODS = [f"/{MODERATION_SERVICE}/{method.name}" for method in SERVICE.methods]
REFLECTION = [
    f"/{REFLECTION_V1}/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
EMPTY_REQUEST_CODES = {
    "Classify": grpc.StatusCode.INVALID_ARGUMENT,
    "ModerateStream": grpc.StatusCode.INVALID_ARGUMENT,
    "ModerateStreams": grpc.StatusCode.OK,
    "GetServerInfo": grpc.StatusCode.OK,
    "GetTokenizer": grpc.StatusCode.OK,
    "ServerReflectionInfo": grpc.StatusCode.OK,
    "GetServers": grpc.StatusCode.OK,
}
"""How each method ends when its only request is an empty message."""

BAD_CREDENTIALS: dict[str, tuple[Metadata, str]] = {
    "none": ((), "CREDENTIAL_REQUIRED"),
    "unknown": (bearer("gw_unknown"), "INVALID_CREDENTIAL"),
    "expired": (bearer(FORMER_KEY), "INVALID_CREDENTIAL"),
    "cut": (bearer(ACME_KEY[:-1]), "INVALID_CREDENTIAL"),
    "token without an issuer": (bearer("a.b.c"), "INVALID_CREDENTIAL"),
    "another scheme": ((("authorization", "Basic YTpi"),), "MALFORMED_CREDENTIAL"),
    "no scheme": ((("authorization", ACME_KEY),), "MALFORMED_CREDENTIAL"),
    "blank": ((("authorization", ""),), "MALFORMED_CREDENTIAL"),
    "blank behind the scheme": ((("authorization", "Bearer "),), "MALFORMED_CREDENTIAL"),
    "twice": (bearer(ACME_KEY) * 2, "MALFORMED_CREDENTIAL"),
    "another header": ((("x-api-key", ACME_KEY),), "CREDENTIAL_REQUIRED"),
}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def file(tmp_path: Path) -> AccessFile:
    return AccessFile(tmp_path / "access.yaml")


@pytest.fixture
async def guarded(start_server: StartServer, file: AccessFile) -> RunningServer:
    """A server with keys, and with everything that is off by default."""
    return await start_server(access_file=file.write(), reflection=True, channelz=True)


@pytest.mark.parametrize(("metadata", "reason"), BAD_CREDENTIALS.values(), ids=BAD_CREDENTIALS.keys())
async def test_every_rpc_refuses(guarded: RunningServer, metadata: Metadata, reason: str) -> None:
    for method in [*METHODS, *REFLECTION, CHANNELZ]:
        failure = await outcome(guarded.channel, method, metadata, b"")
        assert failure, method
        assert (failure.code, failure.reason, failure.field) == (REFUSED, reason, ""), method
        assert failure.retry_after_s is None
    await caller(guarded, ACME_KEY).settled()


async def test_every_rpc_goes_on_with_a_key(guarded: RunningServer) -> None:
    for method in [*METHODS, *REFLECTION, CHANNELZ]:
        failure = await outcome(guarded.channel, method, bearer(ACME_KEY), b"")
        code = failure.code if failure else grpc.StatusCode.OK
        assert code == EMPTY_REQUEST_CODES[method.rpartition("/")[2]], method
    assert len(METHODS) + 2 == len(EMPTY_REQUEST_CODES)


async def test_callers_work_with_a_key(guarded: RunningServer) -> None:
    acme = caller(guarded, ACME_KEY)
    response = await acme.stub.Classify(pb.ClassifyRequest(messages=[user()]), timeout=WAIT_S)
    assert response.model == "tiny-gen"
    async with acme.stream() as call:
        assert (await call.run(opening(), tokens(answer_ids(5)))).summary
    async with ManyCall(acme) as many:
        await many.send((1, opening()), (1, tokens(answer_ids(5))), (2, opening()))
        await many.read_until(many.has_verdicts(1, 5))
    pieces = [piece async for piece in acme.stub.GetTokenizer(pb.GetTokenizerRequest(), timeout=WAIT_S)]
    assert pieces[0].num_bytes == sum(len(piece.chunk) for piece in pieces)
    await acme.settled()


async def test_reflection_works_with_a_key(guarded: RunningServer) -> None:
    for method in REFLECTION:
        call: Any = guarded.channel.stream_stream(
            method,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(metadata=bearer(ACME_KEY), timeout=WAIT_S)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        assert MODERATION_SERVICE in [service.name for service in response.list_services_response.service]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_refusals_come_before_any_request_is_looked_at(guarded: RunningServer) -> None:
    for method in METHODS:
        malformed = await outcome(guarded.channel, method, (), b"\xff\xff")
        assert malformed
        assert malformed.reason == "CREDENTIAL_REQUIRED"
        malformed = await outcome(guarded.channel, method, bearer(ACME_KEY), b"\xff\xff")
        assert malformed
        assert (malformed.code, malformed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), method
    for method in ("ModerateStream", "ModerateStreams"):  # which wait for no request at all
        call: Any = guarded.channel.stream_stream(f"/{MODERATION_SERVICE}/{method}")()
        assert await asyncio.wait_for(call.code(), WAIT_S) is REFUSED


@pytest.mark.parametrize(
    ("num_bytes", "reason"),
    [(MAX_AUTHORIZATION_BYTES, "INVALID_CREDENTIAL"), (MAX_AUTHORIZATION_BYTES + 1, "MALFORMED_CREDENTIAL")],
)
async def test_large_credentials(guarded: RunningServer, num_bytes: int, reason: str) -> None:
    """Every time: gRPC's own limit would refuse some of those that come near ours, and say that the server is full."""
    credential = "x" * (num_bytes - len("Bearer "))
    for _ in range(50):
        failure = await outcome(guarded.channel, METHODS[0], bearer(credential), b"")
        assert failure
        assert (failure.code, failure.reason) == (REFUSED, reason)
        assert "xxx" not in failure.message


async def test_health_answers_anybody(guarded: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(guarded.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_who_cannot_be_checked_is_not_let_in(guarded: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the rules are on fire")

    monkeypatch.setattr(AccessRules, "identify", fail)
    for method in [*METHODS, *REFLECTION, CHANNELZ]:
        failure = await outcome(guarded.channel, method, bearer(ACME_KEY), b"")
        assert failure
        assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert failure.request_id in failure.message
        assert "fire" not in failure.message


async def test_methods_that_do_not_exist(guarded: RunningServer) -> None:
    failure = await outcome(guarded.channel, f"/{MODERATION_SERVICE}/Generate", ())
    assert failure
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED


async def test_without_an_access_file_everybody_is_let_in(server: RunningServer) -> None:
    assert await outcome(server.channel, f"/{MODERATION_SERVICE}/GetServerInfo", (), b"") is None
    assert await outcome(server.channel, f"/{MODERATION_SERVICE}/GetServerInfo", bearer("gw_any"), b"") is None


async def test_good_and_bad_tokens(start_server: StartServer, file: AccessFile, issuer: Issuer) -> None:
    stranger = Issuer()
    issuer.write_key_set(file.path.parent / "keys.json")
    file.jwt = issuer.rules()
    server = await start_server(access_file=file.write())
    method = f"/{MODERATION_SERVICE}/GetServerInfo"
    for name, (_, make_bad) in BAD_TOKENS.items():
        failure = await outcome(server.channel, method, bearer(make_bad(issuer, stranger)), b"")
        assert failure, name
        assert (failure.code, failure.reason) == (REFUSED, "INVALID_CREDENTIAL"), name
        assert failure.message == "the credential is not valid"
    for name, make in TOKENS_OF_NO_TENANT.items():
        failure = await outcome(server.channel, method, bearer(make(issuer)), b"")
        assert failure, name
        assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_TENANT"), name
    assert await outcome(server.channel, method, bearer(issuer.token()), b"") is None
    assert await outcome(server.channel, method, bearer(ACME_KEY), b"") is None  # keys work beside tokens
    async with caller(server, issuer.token("beta")).stream() as call:
        assert (await call.run(opening())).summary


async def test_keys_are_nowhere_to_be_seen(
    guarded: RunningServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    with caplog.at_level(logging.DEBUG):
        async with caller(guarded, ACME_KEY).stream() as call:
            await call.send(opening())
            await call.read_until("prompt_verdict")
            objects = [one for one in gc.get_objects() if str(type(one).__module__).startswith("guardwire_server.")]
            seen += [repr(one) for one in objects]
            assert (await call.run()).summary
        for metadata, _ in BAD_CREDENTIALS.values():
            failure = await outcome(guarded.channel, METHODS[0], metadata, b"")
            seen.append(repr(failure))
    assert "AccessKey(id='acme-1'" in "".join(seen)
    text = "".join([*seen, caplog.text, *capfd.readouterr()])
    for secret in (ACME_KEY, BETA_KEY, FORMER_KEY, "gw_unknown", "YTpi"):
        assert secret not in text
