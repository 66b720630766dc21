"""The HAProxy configuration, with the real HAProxy between a channel and two live servers."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.config import ServerConfig
from tests.deploy.files import HAPROXY
from tests.deploy.haproxy_process import HaproxyProcess, debian_haproxy, recent_haproxy
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint
from tests.rpc.messages import answer_ids, finish, opening, tokens
from tests.rpc.running_server import LoadedModels, RunningServer, make_config
from tests.rpc.stream_call import WAIT_S, Received, StreamCall

IDLE_S = 10.5
"""A little more than the ten seconds at which proxies often end what is silent."""

DRAIN_DELAY_S = 5.0
"""How long HAProxy has to notice that a server drains: much more than it should need, an interval of its checks."""

PROGRAMS = (debian_haproxy, recent_haproxy)


class Cluster:
    """Two servers behind HAProxy, and one channel to it."""

    def __init__(self, servers: list[RunningServer], channel: grpc.aio.Channel) -> None:
        self.servers = servers
        self.stub: pb_grpc.ModerationServiceAsyncStub = pb_grpc.ModerationServiceStub(channel)

    def stream(self) -> StreamCall:
        return StreamCall(self.stub.ModerateStream(timeout=2 * WAIT_S, wait_for_ready=True))

    async def counts(self) -> list[int]:
        """Open streams by server."""
        return [(await server.info()).load.num_sessions for server in self.servers]


class StartCluster(Protocol):
    """Starts two servers, and a program of HAProxy's in front of them; the first takes so long to begin its drain."""

    async def __call__(self, program: str, *, drain_delay_s: float = 0.0) -> Cluster: ...


@pytest.fixture
async def start_cluster(tmp_path: Path) -> AsyncIterator[StartCluster]:
    checkpoints = write_stream_checkpoint(tmp_path / "stream"), write_gen_checkpoint(tmp_path / "gen")
    async with AsyncExitStack() as stack:

        async def start(program: str, *, drain_delay_s: float = 0.0) -> Cluster:
            servers = []
            for delay_s in (drain_delay_s, 0.0):
                config = make_config(checkpoints, gen_model="none", drain_delay_s=delay_s, grace_s=WAIT_S)
                servers.append(await stack.enter_async_context(RunningServer(config, LoadedModels().take(config))))
            addresses = {letter: server.address for letter, server in zip("AB", servers, strict=True)}
            proxy = stack.enter_context(HaproxyProcess(program, addresses, tmp_path / "haproxy.log"))
            return Cluster(servers, await stack.enter_async_context(grpc.aio.insecure_channel(proxy.address)))

        yield start


@pytest.mark.parametrize("find_program", PROGRAMS)
async def test_streams_of_one_channel_are_spread_and_outlive_silence(
    start_cluster: StartCluster, find_program: Callable[[], str]
) -> None:
    cluster = await start_cluster(find_program())
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(cluster.stream()) for _ in range(4)]
        for stream in streams:
            await stream.send(opening())
            await stream.read_until("prompt_verdict")
        assert await cluster.counts() == [2, 2]
        await asyncio.sleep(IDLE_S)  # silence is what is tested
        for stream in streams:
            received = await end(stream)
            assert len(received.verdicts) == 3
            assert received.summary


@pytest.mark.parametrize("find_program", PROGRAMS)
async def test_server_that_drains_gets_no_new_streams_and_keeps_its_own(
    start_cluster: StartCluster, find_program: Callable[[], str]
) -> None:
    cluster = await start_cluster(find_program(), drain_delay_s=DRAIN_DELAY_S)
    async with AsyncExitStack() as stack:
        old = [await stack.enter_async_context(cluster.stream()) for _ in range(2)]
        for stream in old:
            await stream.send(opening())
            await stream.read_until("prompt_verdict")
        assert await cluster.counts() == [1, 1]
        stopping = asyncio.create_task(cluster.servers[0].stop())
        async with asyncio.timeout(DRAIN_DELAY_S):
            num_elsewhere = 0
            while num_elsewhere < 3:  # until HAProxy has noticed, every other stream still goes there
                async with cluster.stream() as stream:
                    await stream.send(opening())
                    await stream.read_until("prompt_verdict")
                    draining, other = await cluster.counts()
                    num_elsewhere = num_elsewhere + 1 if (draining, other) == (1, 2) else 0
                for server in cluster.servers:
                    await server.counts(num_sessions=1)
        for stream in old:
            assert (await end(stream)).summary
        await asyncio.wait_for(stopping, WAIT_S + DRAIN_DELAY_S)


async def test_what_a_server_refuses_reaches_the_caller(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(recent_haproxy())
    async with cluster.stream() as stream:
        await stream.send(opening(policy="no-such-policy"))
        failure = await stream.failure()
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert failure.field == "open.policy"


async def end(stream: StreamCall) -> Received:
    """Pushes three tokens and ends the caller's half as well, which HAProxy 2.6 needs: see the configuration."""
    await stream.send(tokens(answer_ids(3)), finish())
    await stream.half_close()
    return await stream.read_all()


@pytest.mark.parametrize("find_program", PROGRAMS)
def test_haproxy_itself_finds_nothing_wrong(find_program: Callable[[], str]) -> None:
    checked = subprocess.run([find_program(), "-c", "-f", str(HAPROXY)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warning" not in checked.stderr.lower()


def test_servers_end_idle_streams_before_haproxy_does() -> None:
    timeouts = {
        side: float(seconds)
        for side, seconds in re.findall(r"^ +timeout (client|server) (\d+)s$", HAPROXY.read_text(), re.MULTILINE)
    }
    assert set(timeouts) == {"client", "server"}
    assert min(timeouts.values()) > ServerConfig().idle_timeout_s


def test_check_asks_for_the_name_of_readiness() -> None:
    sent = bytes.fromhex("".join(re.findall(r"send-binary (\w+)$", HAPROXY.read_text(), re.MULTILINE)))
    preface, _, frames = sent.partition(b"SM\r\n\r\n")
    assert preface.startswith(b"PRI * HTTP/2.0\r\n")
    read = []
    while frames:
        size = int.from_bytes(frames[:3])
        read.append((frames[3], frames[4], frames[9 : 9 + size]))
        frames = frames[9 + size :]
    settings, headers, data = read
    assert settings == (4, 0, b"")
    assert headers[:2] == (1, 4)  # HEADERS, complete
    assert b"\x1c/grpc.health.v1.Health/Check" in headers[2]
    assert data == (0, 1, b"\x00\x00\x00\x00\x0b\x0a\x09readiness")  # DATA, the last
