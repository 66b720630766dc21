"""A healthy stream beside a bad one."""

from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import Received, StreamCall, assert_same_prompt_verdict, assert_same_verdicts

_OPENING = opening([user("Tell me about the river.")])
_BEFORE, _AFTER = answer_ids(20, seed=5), answer_ids(20, seed=6)


class Bystander:
    """Opened before a test's own stream and finished after it; in between it holds a place and cached tokens."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._call: StreamCall
        self._solo: Received

    async def begin(self) -> None:
        """Runs alone once, to know what is right; then opens the stream and has half of it judged."""
        async with self._server.stream() as solo:
            self._solo = await solo.run(_OPENING, tokens(_BEFORE), tokens(_AFTER))
        await self._server.settled()
        self._call = self._server.stream()
        await self._call.send(_OPENING, tokens(_BEFORE))
        await self._call.read_verdicts(len(_BEFORE))

    async def end(self) -> None:
        """Checks that the other streams are gone, finishes, and checks that nothing was different or is left."""
        await self._server.settled(num_sessions=1)
        async with self._call:
            await self._call.send(tokens(_AFTER, start_index=len(_BEFORE)), finish())
            received = await self._call.read_all()
        assert received.summary
        assert self._solo.summary
        assert received.summary.num_tokens == len(_BEFORE) + len(_AFTER)
        assert received.summary.action == self._solo.summary.action
        assert_same_prompt_verdict(received.prompt_verdicts[0], self._solo.prompt_verdicts[0])
        assert_same_verdicts(received.verdicts, self._solo.verdicts)
        await self._server.settled()
        load = (await self._server.info()).load
        assert load.num_pending_tokens == 0
        assert load.kv_arena_used == 0.0
