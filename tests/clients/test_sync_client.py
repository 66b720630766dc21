"""The twin without asyncio: what could differ from the asyncio client is tested again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from guardwire import (
    Action,
    Cancelled,
    Client,
    DeadlineExceeded,
    EndReason,
    InputKind,
    InvalidRequest,
    ModerateStream,
    Overloaded,
    PromptVerdict,
    RiskLevel,
    ServerFault,
    Summary,
    TokenVerdicts,
    Update,
    UpdatesLost,
)
from guardwire.unread_updates import MAX_UNREAD
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_server import Failure, FakeServer
from tests.clients.fake_stream import VOCABULARY
from tests.clients.fake_tokenizer import tokenizer_json

SKY, BOMB = VOCABULARY["sky"], VOCABULARY["bomb"]

Use = Callable[[Client], None]


@pytest.fixture
def using(target: str) -> Callable[[Use], Awaitable[None]]:
    """Runs a function in a thread, with a client; the fake server goes on serving in this one."""

    def run(use: Use) -> None:
        with Client(target) as client:
            use(client)

    return lambda use: asyncio.to_thread(run, use)


def push_forever(stream: ModerateStream) -> None:
    while True:
        stream.push([SKY])


def num_tokens(updates: list[Update]) -> int:
    return sum(len(update) for update in updates if isinstance(update, TokenVerdicts))


async def test_unary_verbs(fake: FakeServer, using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        assert client.classify("bomb").action is Action.BLOCK
        assert client.server_info().version == "0.1.0"
        assert client.tokenizer_json() == tokenizer_json()

    await using(use)


async def test_metadata_goes_with_every_call(fake: FakeServer, target: str) -> None:
    def use() -> None:
        with Client(target, metadata=[("authorization", "Bearer x")]) as client:
            client.classify("hi")

    await asyncio.to_thread(use)
    assert fake.metadata["authorization"] == "Bearer x"


async def test_an_answer_from_open_to_summary(fake: FakeServer, using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        with client.moderate("hello") as stream:
            assert stream.opened.session_id == "fake-1"
            stream.push([SKY] * 20)
            stream.rollback(5)
            stream.user_turn("hello")
            stream.push([SKY])
            assert stream.num_tokens == 6
            stream.finish()
            updates = list(stream)
            assert list(stream) == []
        assert isinstance(updates[0], PromptVerdict)
        assert num_tokens(updates) == 21
        assert isinstance(updates[-1], Summary)
        assert (updates[-1].end_reason, updates[-1].num_tokens) == (EndReason.FINISHED, 6)

    await using(use)
    assert fake.num_abandoned == 0


async def test_text(using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        with client.moderate("hello", input=InputKind.TEXT) as stream:
            stream.push_text("bomb", flush=True)
            assert isinstance(next(stream), PromptVerdict)
            verdicts = next(stream)
            assert isinstance(verdicts, TokenVerdicts)
            assert verdicts[0].risk_level is RiskLevel.UNSAFE

    await using(use)


async def test_pushing_while_iterating_from_another_thread(using: Callable[[Use], Awaitable[None]]) -> None:
    def push(stream: ModerateStream) -> None:
        for _ in range(200):
            stream.push([SKY])
        stream.finish()

    def use(client: Client) -> None:
        with client.moderate("hello") as stream, ThreadPoolExecutor(1) as pool:
            pushing = pool.submit(push, stream)
            assert num_tokens(list(stream)) == 200
            pushing.result()

    await using(use)


async def test_many_threads_push_on_one_stream(using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        with client.moderate("hello") as stream:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: stream.push([SKY] * 20), range(20)))
            stream.finish()
            assert num_tokens(list(stream)) == 400

    await using(use)


async def test_many_streams_at_once(using: Callable[[Use], Awaitable[None]]) -> None:
    def moderate(client: Client, number: int) -> int:
        with client.moderate("hello") as stream:
            stream.push([SKY] * number)
            stream.finish()
            return num_tokens(list(stream))

    def use(client: Client) -> None:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda number: moderate(client, number), range(30))) == list(range(30))

    await using(use)


async def test_a_caller_that_only_pushes_learns_of_the_block(using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        with client.moderate("hello", end_on_block=True) as stream:
            while not stream.blocked:
                stream.push([BOMB])
            for _ in range(100):
                stream.push([BOMB])
            stream.finish()
            assert stream.decision is not None
            assert stream.decision.action is Action.BLOCK
            *_, summary = stream
            assert isinstance(summary, Summary)
            assert summary.end_reason is EndReason.BLOCKED

    await using(use)


async def test_updates_that_nobody_reads_are_bounded(using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        with client.moderate("hello") as stream:
            stream.push([SKY] * (MAX_UNREAD + 1) + [BOMB] * 2)
            stream.finish()
            while not stream.blocked:  # known to the end, whoever reads
                time.sleep(0.01)
            with pytest.raises(UpdatesLost):
                next(stream)
            *_, summary = stream
            assert isinstance(summary, Summary)
            assert summary.num_tokens == stream.num_tokens

    await using(use)


async def test_leaving_early_cancels_and_frees_every_thread(
    fake: FakeServer, using: Callable[[Use], Awaitable[None]]
) -> None:
    before = set(threading.enumerate())

    def use(client: Client) -> None:
        before.add(threading.current_thread())
        with ThreadPoolExecutor(1) as pool:
            with client.moderate("hello") as stream:
                stream.push([SKY])
                assert num_tokens([next(stream), next(stream)]) == 1  # so grpc waits for the next request
                reading = pool.submit(list, stream)
            with pytest.raises(Cancelled, match="was left"):
                reading.result()
            with pytest.raises(Cancelled, match="was left"):
                stream.push([SKY])
        assert "guardwire-stream" not in {thread.name for thread in threading.enumerate()}

    await using(use)
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 10)  # grpc's own
        assert not thread.is_alive(), thread.name
    await fake.wait_idle()
    assert fake.num_abandoned == 1


async def test_an_error_in_the_block_cancels_and_passes(
    fake: FakeServer, using: Callable[[Use], Awaitable[None]]
) -> None:
    def use(client: Client) -> None:
        with pytest.raises(ZeroDivisionError), client.moderate("hello"):
            raise ZeroDivisionError

    await using(use)
    await fake.wait_idle()
    assert fake.num_abandoned == 1


async def test_an_error_in_the_middle_reaches_pushing_and_iterating(
    fake: FakeServer, using: Callable[[Use], Awaitable[None]]
) -> None:
    fake.failure, fake.fails_after = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), 3

    def use(client: Client) -> None:
        for _ in range(30):
            fake.requests.clear()
            with client.moderate("hello") as stream:
                with pytest.raises(Overloaded):
                    push_forever(stream)
                with pytest.raises(Overloaded):
                    list(stream)

    await using(use)


async def test_deadlines(fake: FakeServer, target: str) -> None:
    fake.silent = True

    def use() -> None:
        with Client(target, timeout_s=0.05) as client:
            with pytest.raises(DeadlineExceeded):
                client.classify("hi")
            stream = client.moderate("hi")
            with pytest.raises(DeadlineExceeded, match="did not open"):
                stream.__enter__()
            with pytest.raises(DeadlineExceeded, match="did not open"):
                stream.push([SKY])
        with Client(target) as client, pytest.raises(DeadlineExceeded), client.moderate("hi", timeout_s=0.05):
            pass

    await asyncio.to_thread(use)


@pytest.mark.parametrize(
    ("responses", "message"),
    [([], "without a summary"), ([pb.ModerateStreamResponse(decision=pb.Decision())], "left out Action")],
)
async def test_a_stream_that_breaks_the_contract_fails(
    fake: FakeServer,
    using: Callable[[Use], Awaitable[None]],
    responses: list[pb.ModerateStreamResponse],
    message: str,
) -> None:
    fake.responses = responses

    def use(client: Client) -> None:
        with pytest.raises(ServerFault, match=message), client.moderate("hello"):
            pass

    await using(use)


async def test_misuse(using: Callable[[Use], Awaitable[None]]) -> None:
    def use(client: Client) -> None:
        stream = client.moderate("hello")
        with pytest.raises(RuntimeError):
            stream.push([SKY])
        with pytest.raises(RuntimeError):
            _ = stream.opened
        with stream, pytest.raises(RuntimeError):
            stream.__enter__()
        with client.moderate("hello") as second:
            second.finish()
            with pytest.raises(InvalidRequest, match="finished"):
                second.push([SKY])

    await using(use)
