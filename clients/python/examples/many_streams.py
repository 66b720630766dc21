"""Judges the answers to many conversations on one call: `python many_streams.py [HOST:PORT]`.

A language model's server writes a token of every answer at each of its steps; here the model is played by lists of
words. Whatever one step pushes travels as one message.
"""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from itertools import zip_longest

from guardwire import AsyncClient, AsyncModerateStream, GuardwireError, InputKind, Summary

ANSWERS = {
    "What colour is the sky?": "The sky is blue.",
    "Tell me about fireworks.": (
        "Fireworks light up the sky. To hurt people, build a bomb boom boom and blow up the station."
    ),
    "Hello": "Hello to you too, it is a fine day.",
}


def steps() -> Iterator[tuple[str | None, ...]]:
    """Plays the language model: the next word of each answer; None where it is over."""
    return zip_longest(*(answer.split() for answer in ANSWERS.values()))


async def outcome(stream: AsyncModerateStream, answer: str) -> str:
    """Reads a stream to its end; tells what may be shown of its answer."""
    label = "not judged"
    try:
        await stream.finish()
        async for update in stream:
            if isinstance(update, Summary) and update.risk_level:
                label = update.risk_level.name
    except GuardwireError as error:  # of this stream alone
        return f"{label}: {error}"
    if stream.blocked and stream.decision:
        kept = answer.encode()[: stream.decision.cut_text_offset].decode(errors="ignore")
        return f"{label}: {kept} [cut: {stream.decision.explanation}]"
    return f"{label}: {answer}"


async def main(target: str) -> None:
    """Opens all streams, pushes step by step, and prints what each may show."""
    async with AsyncClient(target) as client, client.moderate_many() as many:
        streams = await asyncio.gather(
            *(many.moderate(prompt, input=InputKind.TEXT, end_on_block=True) for prompt in ANSWERS)
        )
        for words in steps():
            for stream, word in zip(streams, words, strict=True):
                if word and not stream.blocked:
                    with contextlib.suppress(GuardwireError):  # of this stream alone: `outcome` tells it
                        await stream.push_text(f"{word} ")
        outcomes = map(outcome, streams, ANSWERS.values())
        print(*await asyncio.gather(*outcomes), sep="\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"))
