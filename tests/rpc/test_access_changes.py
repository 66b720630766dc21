"""Access rules that change while the server runs: keys and issuers are rotated, and mistakes change nothing."""

import asyncio
from pathlib import Path

import grpc
import pytest

from guardwire_server.rpc.server import MODERATION_SERVICE
from tests.access.access_file import ACME_KEY, BETA_KEY, AccessFile, digest
from tests.access.issuer import Issuer
from tests.rpc.keyed import bearer, caller, outcome
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import answer_ids, finish, opening, tokens
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S, StreamCall


@pytest.fixture
def file(tmp_path: Path) -> AccessFile:
    return AccessFile(tmp_path / "access.yaml")


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


async def lets_in(server: RunningServer, credential: str) -> bool:
    failure = await outcome(server.channel, f"/{MODERATION_SERVICE}/GetServerInfo", bearer(credential), b"")
    assert failure is None or failure.reason == "INVALID_CREDENTIAL"
    return failure is None


async def until(server: RunningServer, credential: str, *, is_let_in: bool) -> None:
    """Waits until a credential is let in, or is not."""
    async with asyncio.timeout(WAIT_S):
        while await lets_in(server, credential) is not is_let_in:
            pass


async def begun(server: RunningServer, credential: str) -> StreamCall:
    """A stream that was opened with a credential."""
    call = caller(server, credential).stream()
    await call.send(opening())
    await call.read_until("prompt_verdict")
    return call


async def test_keys_are_rotated_without_a_restart(
    start_server: StartServer, file: AccessFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(access_file=file.write(), reload_interval_s=0.05)
    old, new = ACME_KEY, "gw_acme-new"
    async with await begun(server, old) as before:
        assert not await lets_in(server, new)
        file.keys.append({"id": "acme-2", "tenant": "acme", "sha256": digest(new)})
        file.write()
        await until(server, new, is_let_in=True)
        assert await lets_in(server, old)
        file.keys = [key for key in file.keys if key["id"] != "acme-1"]
        file.write()
        await until(server, old, is_let_in=False)
        assert await lets_in(server, new)
        received = await before.run(tokens(answer_ids(5)))  # who is in, stays in
        assert received.summary
        assert len(received.verdicts) == 5
    async with await begun(server, new) as after:
        assert (await after.run()).summary
    assert old not in caplog.text


async def test_a_call_for_many_streams_outlives_its_credential(start_server: StartServer, file: AccessFile) -> None:
    server = await start_server(access_file=file.write(), reload_interval_s=0.05)
    async with ManyCall(caller(server, ACME_KEY)) as call:
        await call.send((1, opening()))
        await call.read_until(call.has_judged_prompts(1))
        (key,) = (key for key in file.keys if key["id"] == "acme-1")
        file.keys.remove(key)
        file.write()
        await until(server, ACME_KEY, is_let_in=False)
        await call.send((2, opening()), (1, tokens(answer_ids(5))), (1, finish()))
        await call.read_until(call.has_ended(1, 2))
        assert call.errors[2].code == grpc.StatusCode.UNAUTHENTICATED.value[0]
        assert call.errors[2].reason == "INVALID_CREDENTIAL"
        assert len(call.received[1].verdicts) == 5  # who is in, stays in
        file.keys.append(key)
        file.write()
        await until(server, ACME_KEY, is_let_in=True)
        await call.send((3, opening()), (3, finish()))
        await call.read_until(call.has_ended(3))
        assert call.summary(3)


async def test_a_tenant_that_comes_back_has_one_limit_for_all_its_calls(
    start_server: StartServer, file: AccessFile
) -> None:
    server = await start_server(access_file=file.write(), reload_interval_s=0.05)
    acme = caller(server, ACME_KEY)
    async with ManyCall(acme) as call:
        await call.send((1, opening()), (1, finish()))
        await call.read_until(call.has_ended(1))
        tenants, keys = file.tenants, file.keys
        file.tenants = {name: limits for name, limits in tenants.items() if name != "acme"}
        file.keys = [key for key in keys if key["tenant"] != "acme"]
        file.write()
        await until(server, ACME_KEY, is_let_in=False)
        file.tenants, file.keys = {**tenants, "acme": {"max_streams": 1}}, keys
        file.write()
        await until(server, ACME_KEY, is_let_in=True)
        async with await begun(server, ACME_KEY):
            await call.send((2, opening()))
            await call.read_until(call.has_ended(2))
            assert call.errors[2].reason == "TENANT_STREAMS"


async def test_a_mistake_leaves_everything_as_it_was(
    start_server: StartServer, file: AccessFile, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(access_file=file.write(), reload_interval_s=0.05)
    file.keys[0]["tenant"] = "acne"
    file.write()
    async with asyncio.timeout(WAIT_S):
        while "keys.0.tenant: there is no tenant acne" not in caplog.text:
            assert await lets_in(server, ACME_KEY)
    assert "access_file: the changed file is not taken, the old content stays" in caplog.text
    assert await lets_in(server, ACME_KEY)
    assert await lets_in(server, BETA_KEY)
    file.keys[0]["tenant"] = "beta"
    file.tenants = {"beta": {}}
    file.keys = file.keys[:1]
    file.write()
    await until(server, BETA_KEY, is_let_in=False)
    assert await lets_in(server, ACME_KEY)  # whose tenant is another now


async def test_an_issuer_changes_its_keys(start_server: StartServer, file: AccessFile, issuer: Issuer) -> None:
    key_set, successor = file.path.parent / "keys.json", Issuer("RS256", "two")
    issuer.write_key_set(key_set)
    file.jwt = issuer.rules()
    server = await start_server(access_file=file.write(), reload_interval_s=0.05)
    assert await lets_in(server, issuer.token())
    assert not await lets_in(server, successor.token())
    issuer.write_key_set(key_set, successor)
    await until(server, successor.token(), is_let_in=True)
    assert await lets_in(server, issuer.token())
    successor.write_key_set(key_set)
    await until(server, issuer.token(), is_let_in=False)
    assert await lets_in(server, successor.token())
