"""`liveness` and `readiness`: what an orchestrator restarts a server for, and what it only keeps calls away for."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from guardwire_server.rpc import health
from guardwire_server.rpc.health import LIVENESS, READINESS
from tests.rpc.health_calls import NOT_SERVING, SERVING, Watch, check
from tests.rpc.messages import answer_ids, opening, tokens
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S

FLIP_S = 5.0
"""What operators are promised: a device that hangs shows sooner."""


async def statuses(server: RunningServer) -> Sequence[int]:
    """Of the whole server, readiness and liveness."""
    return [await check(server, service) for service in ("", READINESS, LIVENESS)]


@pytest.fixture
async def demo_server(start_server: StartServer) -> RunningServer:
    """A server of the demo models, with the stall timeout that follows from their steps."""
    return await start_server(
        stream_model="demo", gen_model="demo", dtype="auto", max_context_tokens=None, max_num_batched_tokens=None
    )


async def test_hanging_device_shows_in_time(demo_server: RunningServer) -> None:
    server, loop = demo_server, asyncio.get_running_loop()
    names = ("", READINESS, LIVENESS)
    async with Watch(server) as whole, Watch(server, READINESS) as readiness, Watch(server, LIVENESS) as liveness:
        watches = (whole, readiness, liveness)
        assert [await watch.next_status() for watch in watches] == [SERVING] * len(names)
        async with server.stream() as call:
            await call.send(opening(), tokens(answer_ids(5)))
            await call.read_verdicts(5)
            server.stream_gate.hold()
            await call.send(tokens(answer_ids(5, seed=1)))
            await server.stream_gate.arrival()
            began_s = loop.time()
            assert [await watch.next_status() for watch in watches] == [NOT_SERVING] * len(names)
            assert loop.time() - began_s < FLIP_S
            assert [await check(server, name) for name in names] == [NOT_SERVING] * len(names)
            server.stream_gate.release()
            assert [await watch.next_status() for watch in watches] == [SERVING] * len(names)
            assert len((await call.run()).verdicts) == 10


async def test_device_that_hangs_in_the_probe_shows_in_time(
    demo_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, loop = demo_server, asyncio.get_running_loop()
    async with Watch(server, LIVENESS) as liveness:
        assert await liveness.next_status() == SERVING
        server.stream_gate.hold()
        monkeypatch.setattr(health, "PROBE_INTERVAL_S", 0.0)
        await server.stream_gate.arrival()
        began_s = loop.time()
        assert await liveness.next_status() == NOT_SERVING
        assert loop.time() - began_s < FLIP_S
        server.stream_gate.release()
        assert await liveness.next_status() == SERVING


async def test_draining_server_is_not_ready_but_alive(start_server: StartServer) -> None:
    server = await start_server(grace_s=2 * WAIT_S)
    async with server.stream() as call:
        await call.send(opening())
        await call.read_until("prompt_verdict")
        stopping = asyncio.create_task(server.stop())
        await call.read_until("draining")
        assert await statuses(server) == [NOT_SERVING, NOT_SERVING, SERVING]
        async with Watch(server, LIVENESS) as liveness:
            assert await liveness.next_status() == SERVING
            assert len((await call.run(tokens(answer_ids(5)))).verdicts) == 5
            await asyncio.wait_for(stopping, WAIT_S)
            assert await liveness.code() is grpc.StatusCode.UNAVAILABLE


async def test_draining_server_whose_device_hangs_is_dead(start_server: StartServer) -> None:
    server = await start_server(grace_s=2 * WAIT_S, stall_timeout_s=0.3)
    async with server.stream() as call, Watch(server, LIVENESS) as liveness, Watch(server) as whole:
        assert await liveness.next_status() == await whole.next_status() == SERVING
        await call.send(opening())
        await call.read_until("prompt_verdict")
        stopping = asyncio.create_task(server.stop())
        await call.read_until("draining")
        server.stream_gate.hold()
        await call.send(tokens(answer_ids(5)))
        assert await liveness.next_status() == NOT_SERVING
        server.stream_gate.release()
        assert await liveness.next_status() == SERVING
        assert await statuses(server) == [NOT_SERVING, NOT_SERVING, SERVING]
        await call.run()
        await asyncio.wait_for(stopping, WAIT_S)


async def test_failing_steps_are_no_reason_for_a_restart(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server()
    async with Watch(server) as whole, Watch(server, LIVENESS) as liveness:
        assert await whole.next_status() == await liveness.next_status() == SERVING
        server.stream_gate.fail(2)
        monkeypatch.setattr(health, "PROBE_INTERVAL_S", 0.0)
        assert await whole.next_status() == NOT_SERVING
        assert await check(server, LIVENESS) == SERVING
        assert await whole.next_status() == SERVING


async def test_lost_device_is_a_reason(server: RunningServer) -> None:
    async with Watch(server, LIVENESS) as liveness:
        assert await liveness.next_status() == SERVING
        server.stream_gate.fail(3)
        for _ in range(3):
            async with server.stream() as call:
                await call.send(opening())
                assert (await call.failure()).reason == "STEP_FAILED"
        assert await liveness.next_status() == NOT_SERVING
    assert await statuses(server) == [NOT_SERVING] * 3
