"""A healthy stream beside many bad ones, which speaks all the while."""

from tests.rpc.messages import answer_ids, finish, opening, rollback, tokens, user
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import StreamCall, TokenVerdict, assert_same_prompt_verdict, assert_same_verdicts

_OPENING = opening([user("Tell me about the river.")])
_ANSWER = answer_ids(24, seed=5)
_NUM_TOKENS_AT_ONCE = 4


class SpeakingBystander:
    """Says one answer over and over, a few tokens at a time; each verdict must be that of its solo run."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._call: StreamCall
        self._solo: list[TokenVerdict]
        self._num_said = 0

    async def begin(self) -> None:
        """Runs alone once, to know what is right; then opens the stream."""
        async with self._server.stream() as solo:
            alone = await solo.run(_OPENING, tokens(_ANSWER))
        self._solo = alone.verdicts
        self._call = self._server.stream()
        await self._call.send(_OPENING)
        received = await self._call.read_until("prompt_verdict")
        assert_same_prompt_verdict(received.prompt_verdicts[0], alone.prompt_verdicts[0])

    async def speak(self) -> None:
        """Says the next few tokens; at the end of the answer it takes all of it back."""
        start, stop = self._num_said, self._num_said + _NUM_TOKENS_AT_ONCE
        self._call.received.verdicts.clear()
        await self._call.send(tokens(_ANSWER[start:stop], start_index=start))
        found = await self._call.read_verdicts(_NUM_TOKENS_AT_ONCE)
        assert_same_verdicts(found, self._solo[start:stop])
        self._num_said = stop
        if stop == len(_ANSWER):
            await self._call.send(rollback(0))
            await self._call.read_until("rolled_back")
            self._num_said = 0

    async def end(self) -> None:
        """Finishes, and checks that nothing was lost."""
        await self._call.send(finish())
        received = await self._call.read_all()
        assert received.summary
        assert received.summary.num_tokens == self._num_said
