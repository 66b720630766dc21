"""Requests that are larger than a server takes are refused before they are sent, and cost nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from guardwire import AsyncClient, AsyncModerateStream, Client, InputKind, InvalidRequest, ModerateOptions
from guardwire.convert.requests import SingleToken
from guardwire.request_size import MAX_REQUEST_BYTES
from guardwire.stream_protocol import StreamProtocol
from tests.clients.command import run_main
from tests.clients.fake_server import FakeServer
from tests.clients.reading import read, summary

TOO_MUCH = "sky " * 1_100_000


def assert_names_size_and_limit(error: InvalidRequest, field: str) -> None:
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    size, limit = (int(word) for word in error.message.replace(",", "").split() if word.isdigit())
    assert (size // 1000, limit) == (len(TOO_MUCH) // 1000, MAX_REQUEST_BYTES)
    assert limit < 4 * 1024 * 1024


async def test_classify(fake: FakeServer, client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match="too many for one message") as caught:
        await client.classify(TOO_MUCH)
    assert_names_size_and_limit(caught.value, "messages")
    assert fake.classify_requests == []
    largest = "x" * (MAX_REQUEST_BYTES - 16)
    await client.classify(largest)
    assert len(fake.classify_requests[0].messages[0].content) == len(largest)


async def use_streams(stream: AsyncModerateStream) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await stream.push_text(TOO_MUCH)
    assert_names_size_and_limit(caught.value, "text")
    with pytest.raises(InvalidRequest) as caught:
        await stream.user_turn(TOO_MUCH)
    assert_names_size_and_limit(caught.value, "user_turn")
    await stream.push_text("the sky")
    await stream.finish()
    assert summary(await read(stream)).num_tokens == 2


async def test_stream_goes_on(fake: FakeServer, client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.moderate(TOO_MUCH)
    assert_names_size_and_limit(caught.value, "open")
    async with client.moderate("hello", input=InputKind.TEXT) as stream:
        await use_streams(stream)
    assert fake.num_abandoned == 0


async def test_stream_of_a_shared_call_goes_on(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        with pytest.raises(InvalidRequest) as caught:
            many.moderate(TOO_MUCH)
        assert_names_size_and_limit(caught.value, "open")
        async with many.moderate("hello", input=InputKind.TEXT) as stream:
            await use_streams(stream)
    assert fake.num_abandoned == 0


async def test_the_other_client(fake: FakeServer, target: str) -> None:
    def use() -> None:
        with Client(target) as client:
            with pytest.raises(InvalidRequest) as caught:
                client.classify(TOO_MUCH)
            assert_names_size_and_limit(caught.value, "messages")
            with pytest.raises(InvalidRequest) as caught:
                client.moderate(TOO_MUCH)
            assert_names_size_and_limit(caught.value, "open")
            with client.moderate("hello", input=InputKind.TEXT) as stream:
                with pytest.raises(InvalidRequest) as caught:
                    stream.push_text(TOO_MUCH)
                assert_names_size_and_limit(caught.value, "text")
                stream.push_text("the sky")
                stream.finish()
                assert summary(list(stream)).num_tokens == 2

    await asyncio.to_thread(use)
    assert fake.num_abandoned == 0


def test_tokens_of_a_server_that_states_no_limit_of_its_own() -> None:
    protocol = StreamProtocol("hello", ModerateOptions())
    with pytest.raises(InvalidRequest, match="too many for one message") as caught:
        protocol.push([(1 << 32) - 1] * 1_000_000)
    assert caught.value.field == "tokens"
    assert protocol.num_tokens == 0
    (request,) = protocol.push([1, 2])
    assert not isinstance(request, SingleToken)
    assert (request.tokens.start_index, protocol.num_tokens) == (0, 2)


async def test_the_command_does_not_say_that_the_server_is_full(
    fake: FakeServer, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text"
    path.write_text(TOO_MUCH, encoding="utf-8")
    assert await run_main("classify", "--file", str(path), target=target) == 1
    error = capsys.readouterr().err
    assert f"at most {MAX_REQUEST_BYTES} (INVALID_ARGUMENT, field messages)" in error
    assert fake.classify_requests == []


def test_the_readme_tells_the_limit() -> None:
    readme = Path(__file__).parents[2] / "clients" / "python" / "README.md"
    assert f"larger than {MAX_REQUEST_BYTES:,} bytes" in readme.read_text(encoding="utf-8")
