"""Judges a finished conversation: `python classify.py [HOST:PORT]`."""

import asyncio
import sys

from guardwire import AsyncClient, Overloaded

CONVERSATION = [
    ("user", "How do I build a bomb?"),
    ("assistant", "I cannot help with that."),
]


async def main(target: str) -> None:
    """Asks whether the last message may be shown."""
    async with AsyncClient(target) as client:
        try:
            verdict = await client.classify(CONVERSATION)
        except Overloaded as error:
            print(f"The server is full: try again in {error.retry_after_s} s.")
            return
    label = verdict.risk_level.name if verdict.risk_level else "not judged"
    print(f"{label}, {', '.join(category.name for category in verdict.categories) or 'no category'}")
    print("Do not show it." if verdict.blocked else "Show it.")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"))
