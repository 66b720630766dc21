"""Section `front_end`: what this server costs around its model, with a model that judges nothing.

Two comparisons, all over gRPC from this process to servers in processes of their own:

- one-token messages on calls of their own, against a bare grpc.aio server that answers the same messages with the same
  options (tests/bench/echo_server.py): what is left of it is what the server itself costs. That one comes twice, on
  asyncio's own event loop, as grpc.aio is, and on this server's, which is faster;
- the same conversations all on one ModerateStreams call, against one call each: what packing many into one message
  saves, in the packed form for steps of single tokens and with a message for each stream.

Every conversation waits for its verdict before it pushes the next token. A round measures all loads one after another,
each for a fraction of a second, so that they see the same machine at nearly the same time; ratios are medians of the
rounds' own. Client and server share the machine's cores, so a rate is the pair's, not the server's alone; the processor
time that the server spent on a token is told beside it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict

from tests.bench.front_end_load import Burst, connected, push_on_calls, push_together
from tests.bench.progress import say
from tests.bench.server_process import module_process
from tests.bench.settings import Settings

NUM_CONVERSATIONS = 256  # of the second comparison: as many as the server's default takes in a step
MODEL_FLAGS = ("--stream-model", "demo", "--gen-model", "none", "--device", "cpu", "--native-kernels", "false")
FLAGS = (*MODEL_FLAGS, "--kv-memory-gib", "1", "--drain-delay-s", "0")

ROUNDS_PER_ROUND, MESSAGES_PER_TOKEN, STEPS_PER_TOKEN = 2, 20, 8
"""How many times `Settings.num_rounds` and `Settings.tokens_per_round` are measured: those are rounds of a real model,
which takes a hundred times as long."""

Round = dict[str, Burst]


async def measure_front_end(settings: Settings) -> dict[str, object]:
    """Messages or tokens per second of each load, and their ratios."""
    rounds: list[Round] = []
    async with (
        module_process("tests.bench.echo_server") as echo,
        module_process("tests.bench.echo_server", "--loop", "uvloop") as fast_echo,
        module_process("tests.bench.noop_server", *FLAGS) as noop,
        connected(echo) as echo_stub,
        connected(fast_echo) as fast_echo_stub,
        connected(noop) as noop_stub,
    ):
        num_streams, num_messages = settings.num_streams, MESSAGES_PER_TOKEN * settings.tokens_per_round
        num_steps = STEPS_PER_TOKEN * settings.tokens_per_round
        num_each = max(1, num_streams * num_messages // NUM_CONVERSATIONS)
        num_rounds = ROUNDS_PER_ROUND * settings.num_rounds
        for number in range(num_rounds):
            bursts = {
                "echo": await push_on_calls(echo, echo_stub, num_streams, num_messages, opens=False),
                "fast_echo": await push_on_calls(fast_echo, fast_echo_stub, num_streams, num_messages, opens=False),
                "noop": await push_on_calls(noop, noop_stub, num_streams, num_messages),
                "one_per_call": await push_on_calls(noop, noop_stub, NUM_CONVERSATIONS, num_each),
                "many": await push_together(noop, noop_stub, NUM_CONVERSATIONS, num_steps, packed=True),
                "many_unpacked": await push_together(noop, noop_stub, NUM_CONVERSATIONS, num_steps, packed=False),
            }
            rounds.append(bursts)
            rates = ", ".join(f"{name} {burst.tokens_per_s:.0f}" for name, burst in bursts.items())
            say(f"round {number + 1} of {num_rounds}: tokens/s {rates}")
    return _medians(rounds)


def _medians(rounds: Sequence[Round]) -> dict[str, object]:
    """Medians over the rounds; ratios are medians of the rounds' own: machines change speed between rounds."""

    def rate(name: str) -> float:
        return statistics.median(bursts[name].tokens_per_s for bursts in rounds)

    def ratio(name: str, other: str) -> float:
        return statistics.median(bursts[name].tokens_per_s / bursts[other].tokens_per_s for bursts in rounds)

    return {
        "num_conversations": NUM_CONVERSATIONS,
        "echo_messages_per_s": rate("echo"),
        "fast_echo_messages_per_s": rate("fast_echo"),
        "noop_messages_per_s": rate("noop"),
        "noop_of_echo": ratio("noop", "echo"),
        "noop_of_fast_echo": ratio("noop", "fast_echo"),
        "one_per_call_tokens_per_s": rate("one_per_call"),
        "many_tokens_per_s": rate("many"),
        "many_unpacked_tokens_per_s": rate("many_unpacked"),
        "many_over_one": ratio("many", "one_per_call"),
        "many_over_few_calls": ratio("many", "noop"),
        "server_cpu_us": {
            name: statistics.median(bursts[name].server_cpu_us for bursts in rounds) for name in rounds[0]
        },
        "rounds": [{name: asdict(burst) for name, burst in bursts.items()} for bursts in rounds],
    }
