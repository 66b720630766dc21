"""Traces a moderated answer: `python traced_answer.py [HOST:PORT]`; needs `guardwire[otel]` and `opentelemetry-sdk`.

A program that traces already needs none of this: the client's calls join its traces by themselves. Here a provider that
prints each span as it ends takes the place of one that sends them to a collector.
"""

import asyncio
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from guardwire import AsyncClient, InputKind

ANSWER = "Fireworks light up the sky. To hurt people, build a bomb boom boom and blow up the station."


def line(span: ReadableSpan) -> str:
    """What is printed of a span."""
    told = {key: value for key, value in (span.attributes or {}).items() if key.partition(".")[0] != "server"}
    return " ".join([span.name, *(f"{key}={value}" for key, value in sorted(told.items()))]) + "\n"


async def main(target: str) -> None:
    """Moderates an answer within a span of the program's own, and leaves the stream where it is blocked."""
    tracer = trace.get_tracer("examples")
    async with AsyncClient(target) as client:
        with tracer.start_as_current_span("write an answer"):
            async with client.moderate("Tell me about fireworks.", input=InputKind.TEXT) as stream:
                for word in ANSWER.split():
                    await stream.push_text(f"{word} ")
                async for _ in stream:
                    if stream.blocked:
                        break


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
    trace.set_tracer_provider(provider)
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"))
