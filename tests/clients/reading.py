"""What a stream's tests read from it."""

from __future__ import annotations

from guardwire import AsyncModerateStream, Summary, TokenVerdict, TokenVerdicts, Update
from tests.clients.fake_stream import VOCABULARY

SKY, BLUE, BOMB, BOOM, KNIFE = (VOCABULARY[word] for word in ("sky", "blue", "bomb", "boom", "knife"))


async def read(stream: AsyncModerateStream) -> list[Update]:
    return [update async for update in stream]


async def push_forever(stream: AsyncModerateStream, token_ids: list[int]) -> None:
    while True:
        await stream.push(token_ids)


def tokens(updates: list[Update]) -> list[TokenVerdict]:
    return [verdict for update in updates if isinstance(update, TokenVerdicts) for verdict in update]


def summary(updates: list[Update]) -> Summary:
    assert isinstance(updates[-1], Summary)
    return updates[-1]
