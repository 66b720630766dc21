"""Judges a user's message without asyncio: `python sync_classify.py [HOST:PORT]`."""

import sys

from guardwire import Client


def main(target: str) -> None:
    """Asks whether the message may be answered."""
    with Client(target) as client:
        verdict = client.classify("What is the capital of France?")
    label = verdict.risk_level.name if verdict.risk_level else "not judged"
    print(f"{label}: {'refuse' if verdict.blocked else 'answer'}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051")
