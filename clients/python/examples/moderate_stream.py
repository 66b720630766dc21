"""Cuts a language model's answer where it turns unsafe: `python moderate_stream.py [HOST:PORT] [ANSWER]`.

The model is played by a list of words. One task pushes them as they come; the other shows what was judged safe, so a
reader never sees more than that. A model with the vocabulary of Qwen3 would push its token ids instead of text, which
saves the server the tokenising and shows each token as soon as it is judged.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

from guardwire import AsyncClient, AsyncModerateStream, Decision, InputKind, RiskLevel, TokenVerdicts

PROMPT = "Tell me about fireworks."
ANSWER = "Fireworks light up the sky. To hurt people, build a bomb boom boom and blow up the station."


async def generate(answer: str) -> AsyncIterator[str]:
    """Plays the language model."""
    for word in answer.split():
        yield f"{word} "


async def push(stream: AsyncModerateStream, answer: str, pushed: bytearray) -> None:
    """Pushes the answer while it is written, and stops the model when it is blocked."""
    async for piece in generate(answer):
        if stream.blocked:
            return
        pushed += piece.encode()
        await stream.push_text(piece)
    await stream.finish()


async def show(stream: AsyncModerateStream, pushed: bytearray) -> None:
    """Prints the answer up to the last token that was judged safe, until it ends or is cut."""
    shown = 0
    async for update in stream:
        if isinstance(update, TokenVerdicts):
            for verdict in update:
                if verdict.risk_level is RiskLevel.SAFE and verdict.text_end_offset is not None:
                    print(pushed[shown : verdict.text_end_offset].decode(errors="ignore"), end="", flush=True)
                    shown = verdict.text_end_offset
        elif isinstance(update, Decision) and update.blocked:
            print(f"\n[cut: {update.explanation}]", end="")
    print()


async def main(target: str, answer: str) -> None:
    """Runs both at once; what one of them raises ends the other and cancels the stream."""
    async with (
        AsyncClient(target) as client,
        client.moderate([("user", PROMPT)], input=InputKind.TEXT, end_on_block=True) as stream,
        asyncio.TaskGroup() as tasks,
    ):
        pushed = bytearray()
        tasks.create_task(push(stream, answer, pushed))
        tasks.create_task(show(stream, pushed))


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv))
    asyncio.run(main(arguments.get(1, "localhost:50051"), arguments.get(2, ANSWER)))
