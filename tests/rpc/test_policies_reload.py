"""A policies file that changes while the server runs: new requests get the new policies, open streams keep theirs."""

import asyncio
from pathlib import Path

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy_set import built_in_policies
from guardwire_server.policy_file import load_policies
from tests.rpc.messages import finish, opening, tokens, user
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.scripted_model import SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.rpc.stream_call import WAIT_S, StreamCall

UNSAFE_ANSWER = tokens([SAFE_ID, UNSAFE_ID, UNSAFE_ID])
INTERVAL_S = 0.01


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policies.yaml"


def write(path: Path, text: str) -> None:
    """Replaces the file as a whole, as those who deploy do."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(path)


def policies(unsafe: str, *names: str) -> str:
    rules = f"{{assistant: {{unsafe: {unsafe}}}}}"
    return "version: 1\npolicies:\n" + "".join(f"  {name}: {rules}\n" for name in ("default", *names))


async def start(start_server: StartServer, path: Path) -> RunningServer:
    server = await start_server(policies_file=path, reload_interval_s=INTERVAL_S)
    server.stream_gate.substitute(ScriptedModel())
    return server


async def taken(server: RunningServer, path: Path) -> pb.GetServerInfoResponse:
    """Waits until the server says that what is in the file is in force."""
    version = load_policies(path).value.version
    async with asyncio.timeout(WAIT_S):
        while (info := await server.info()).policies_version != version:
            pass
    return info


async def answer_actions(call: StreamCall, *requests: pb.ModerateStreamRequest) -> list[int]:
    return [decision.action for decision in (await call.run(*requests)).decisions]


async def test_new_streams_get_the_new_policies_and_open_ones_keep_theirs(
    start_server: StartServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write(path, policies("flag"))
    server = await start(start_server, path)
    before = await taken(server, path)
    assert [policy.name for policy in before.policies] == ["default"]
    assert before.policies[0].assistant.unsafe == pb.ACTION_FLAG
    async with server.stream() as early, server.stream() as late:
        await early.send(opening())
        await early.read_until("prompt_verdict")
        write(path, policies("block", "own"))
        after = await taken(server, path)
        assert after.policies_version != before.policies_version
        assert f"policies_file: version {after.policies_version} is in force" in caplog.messages
        assert [policy.name for policy in after.policies] == ["default", "own"]
        assert after.policies[0].assistant.unsafe == pb.ACTION_BLOCK
        assert await answer_actions(late, opening(), UNSAFE_ANSWER) == [pb.ACTION_BLOCK]
        assert await answer_actions(early, UNSAFE_ANSWER) == [pb.ACTION_FLAG]


async def test_a_stream_keeps_its_policy_when_the_file_drops_it(start_server: StartServer, path: Path) -> None:
    write(path, policies("block", "own"))
    server = await start(start_server, path)
    async with server.stream() as early, server.stream() as late:
        await early.send(opening(policy="own"))
        await early.read_until("prompt_verdict")
        write(path, policies("flag"))
        await taken(server, path)
        await late.send(opening(policy="own"), finish())
        failure = await late.failure()
        assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_POLICY")
        assert failure.message == "open.policy: no such policy; there are default"
        assert await answer_actions(early, UNSAFE_ANSWER) == [pb.ACTION_BLOCK]


async def test_classify_gets_the_new_policies(start_server: StartServer, path: Path) -> None:
    write(path, policies("block"))
    server = await start(start_server, path)
    request = pb.ClassifyRequest(messages=[user()], policy="own")
    assert (await server.classify_failure(request)).reason == "UNKNOWN_POLICY"
    write(path, policies("block", "own"))
    await taken(server, path)
    assert (await server.stub.Classify(request, timeout=WAIT_S)).policy == "own"


async def test_an_invalid_file_keeps_the_old_policies_and_says_so(
    start_server: StartServer, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, policies("flag"))
    server = await start(start_server, path)
    before = await taken(server, path)
    write(path, policies("stop"))
    told = f"{path}:3: policies.default.assistant.unsafe: must be 'allow', 'flag' or 'block'"
    async with asyncio.timeout(WAIT_S):
        while not any(told in message for message in caplog.messages):
            await server.info()
    assert (await server.info()).policies_version == before.policies_version
    async with server.stream() as call:
        assert await answer_actions(call, opening(), UNSAFE_ANSWER) == [pb.ACTION_FLAG]
    write(path, policies("block"))
    await taken(server, path)
    assert sum(told in message for message in caplog.messages) == 1


async def test_a_server_does_not_start_with_an_invalid_file(start_server: StartServer, path: Path) -> None:
    write(path, "version: 1\npolicies: {}\n")
    with pytest.raises(StartupError, match=r"policies\.yaml:2: policies: there must be a policy named default"):
        await start(start_server, path)


async def test_the_names_of_many_policies_fit_in_a_status(start_server: StartServer, path: Path) -> None:
    names = [f"{number:03}{'x' * 61}" for number in range(255)]
    write(path, policies("block", *names))
    server = await start(start_server, path)
    failure = await server.classify_failure(pb.ClassifyRequest(messages=[user()], policy="none"))
    assert (failure.reason, failure.field) == ("UNKNOWN_POLICY", "policy")
    assert failure.message == f"policy: no such policy; there are default, {', '.join(names[:15])} and 240 more"
    assert len((await server.info()).policies) == 256


async def test_without_a_file_the_built_in_policies_are_in_force(server: RunningServer) -> None:
    assert (await server.info()).policies_version == built_in_policies().version
