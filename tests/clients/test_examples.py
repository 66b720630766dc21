"""Every example runs as its own process against the server under test."""

from __future__ import annotations

from pathlib import Path

from tests.clients.command import run_python
from tests.clients.fake_server import FakeServer

EXAMPLES = Path(__file__).parents[2] / "clients" / "python" / "examples"


async def example(name: str, *arguments: str) -> str:
    ran = await run_python("-W", "error", str(EXAMPLES / name), *arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


async def test_classify(target: str) -> None:
    assert await example("classify.py", target) == "SAFE, no category\nShow it.\n"


async def test_sync_classify(target: str) -> None:
    assert await example("sync_classify.py", target) == "SAFE: answer\n"


async def test_moderate_stream_cuts_the_answer(target: str) -> None:
    shown = await example("moderate_stream.py", target)
    assert shown == "Fireworks light up the sky. To hurt people, build a\n[cut: two in a row]\n"


async def test_many_streams(target: str) -> None:
    assert (await example("many_streams.py", target)).splitlines() == [
        "SAFE: The sky is blue.",
        "UNSAFE: Fireworks light up the sky. To hurt people, build a [cut: two in a row]",
        "SAFE: Hello to you too, it is a fine day.",
    ]


async def test_moderate_stream_lets_a_safe_answer_pass(target: str) -> None:
    assert await example("moderate_stream.py", target, "The sky is blue.") == "The sky is blue.\n"


async def test_traced_answer(fake: FakeServer, target: str) -> None:
    call, answer = (await example("traced_answer.py", target)).splitlines()
    name = "guardwire.v1.ModerationService/ModerateStream"
    assert call.startswith(f"{name} guardwire.action=block guardwire.num_verdicts=")
    assert call.endswith(
        f" guardwire.session.id=fake-1 rpc.method={name} rpc.response.status_code=CANCELLED rpc.system.name=grpc"
    )
    assert answer == "write an answer"
    assert "traceparent" in fake.metadata


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "classify.py",
        "many_streams.py",
        "moderate_stream.py",
        "sync_classify.py",
        "traced_answer.py",
    }
