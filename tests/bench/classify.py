"""Section `classify`: a Classify call against transformers' own greedy `generate`, whose text it must give.

A call goes the whole way, over gRPC on the loopback, template and tokenizer included; `generate` is given the prompt's
ids and does nothing but generate, with its own cache, on the same weights, device, dtype and threads. All of it runs in
this process, because here a server can be started anew over loaded models, and only that gives an empty prefix index.

- `warm`: a server that has answered calls before. It finds the template's beginning among its cached prefixes and
  nothing more, since no two conversations begin alike (`reused_tokens_per_call_warm` tells).
- `cold`: the first call of a server that was just started. It has no prefixes, and of the answers to be expected it
  knows the grammar alone.

Every round asks about one conversation in all three ways. Three in four answers are harmless, and guessed rightly; the
fourth takes the server more passes (gen_prompts.py). A median over all rounds would hide the fourth, and a mean would
follow every hiccup of the machine; so each kind of answer has a median of its own, which counts by the kind's share.

Afterwards the texts of many conversations are compared, see gen_texts.py.
"""

import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from guardwire_server.app import Server
from guardwire_server.config import ServerConfig
from guardwire_server.core.answer import MAX_ANSWER_TOKENS
from guardwire_server.core.kv_arena import KvArena
from guardwire_server.core.scheduler import Scheduler, SchedulerLimits
from guardwire_server.model.checkpoint_device import choose_device_and_dtype
from guardwire_server.model.loading import GenModel
from guardwire_server.served_models import MAX_NUM_BATCHED_TOKENS, Models, load_models
from tests.bench.gen_prompts import NUM_PROMPT_TOKENS, RISKY_EVERY, conversation, is_risky
from tests.bench.gen_texts import compare_texts
from tests.bench.progress import say
from tests.bench.settings import Settings

WAYS = ("generate", "cold", "warm")
SHARES = {"harmless": 1 - 1 / RISKY_EVERY, "risky": 1 / RISKY_EVERY}
MAX_CONTEXT_TOKENS = 512
KV_MEMORY_GIB = 0.5
NUM_CALLS_BEFORE = 8
"""Calls of the warm server that do not count, about as many as fill its arena. Every arena is full of prefixes some
time after the start; before that, a call pays for memory that nobody has touched."""

if TYPE_CHECKING:
    _Stub = moderation_pb2_grpc.ModerationServiceAsyncStub


@dataclass(frozen=True)
class Call:
    """One answer and what it took: milliseconds, and forward passes of the model."""

    text: str
    duration_ms: float
    num_passes: int


@dataclass(frozen=True)
class Round:
    """One conversation: its kind of answer, and a call in each way."""

    kind: str
    calls: Mapping[str, Call]


async def measure_classify(checkpoint: Path, settings: Settings, *, num_texts: int = 500) -> dict[str, object]:
    """Milliseconds and passes of a call in each way, how many times faster than `generate` a server is, and how many
    texts differ from those of `generate`."""
    config = ServerConfig(
        stream_model="none",
        gen_model=str(checkpoint),
        listen="127.0.0.1:0",
        max_context_tokens=MAX_CONTEXT_TOKENS,
        kv_memory_gib=KV_MEMORY_GIB,
        drain_delay_s=0.0,
        grace_s=0.0,
    )
    say("loading the generative model for transformers and for two servers")
    generator, cold, warm = _Generator(checkpoint), _load(config), _load(config)
    rounds: list[Round] = []
    async with _served(config, warm) as stub:
        for number in range(NUM_CALLS_BEFORE):
            await _classify(stub, conversation(number))
        for number in range(NUM_CALLS_BEFORE, NUM_CALLS_BEFORE + 1 + settings.num_repeats):
            generated = generator.answer(conversation(number))
            async with _served(config, _just_started(cold, config)) as cold_stub:
                first = await _classify(cold_stub, conversation(number))
            later = await _classify(stub, conversation(number))
            calls = dict(zip(WAYS, (generated, first, later), strict=True))
            rounds.append(Round("risky" if is_risky(number) else "harmless", calls))
            say(", ".join(f"{way} {call.duration_ms:.0f} ms" for way, call in calls.items()))
    num_warm_calls = NUM_CALLS_BEFORE + len(rounds) - 1  # the first one found nothing
    return {
        "dtype": warm.dtype_name,
        "device": warm.device_name,
        "num_threads": torch.get_num_threads(),
        "num_prompt_tokens": NUM_PROMPT_TOKENS,
        "reused_tokens_per_call_warm": warm.scheduler.num_reused_tokens / num_warm_calls,
        **_figures(rounds[1:]),  # the first one pays for memory that nobody touched before
        **await compare_texts(num_texts),
    }


def _figures(rounds: Sequence[Round]) -> dict[str, object]:
    """What the rounds come to; `by_answer` tells the kinds of answers apart."""
    by_answer = {kind: _kind_figures([one for one in rounds if one.kind == kind]) for kind in SHARES}
    mixed = {
        figure: sum(share * by_answer[kind][figure] for kind, share in SHARES.items()) for figure in by_answer["risky"]
    }
    return {
        **mixed,
        "cold_speedup": mixed["generate_ms"] / mixed["cold_ms"],
        "warm_speedup": mixed["generate_ms"] / mixed["warm_ms"],
        "num_timed_texts_different": sum(
            call.text != one.calls["generate"].text for one in rounds for call in one.calls.values()
        ),
        "by_answer": by_answer,
    }


def _kind_figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Median milliseconds and mean passes of each way, over rounds with one kind of answer."""
    figures = {}
    for way in WAYS:
        calls = [one.calls[way] for one in rounds]
        figures[f"{way}_ms"] = statistics.median(call.duration_ms for call in calls)
        figures[f"passes_per_call_{way}"] = statistics.mean(call.num_passes for call in calls)
    return figures


class _Generator:
    """transformers alone: its template, its tokenizer, its `generate`."""

    def __init__(self, checkpoint: Path) -> None:
        device, dtype = choose_device_and_dtype()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
        self._model = model.to(device)

    def answer(self, text: str) -> Call:
        """Answers a user's message; what is timed is `generate` alone. Every token is a pass."""
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], return_tensors="pt", return_dict=True
        ).to(self._model.device)
        started_s = time.perf_counter()
        ids = self._model.generate(**prompt, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)[0].tolist()
        duration_s = time.perf_counter() - started_s
        answer_ids = ids[prompt["input_ids"].shape[1] :]
        return Call(self._tokenizer.decode(answer_ids, skip_special_tokens=True), 1000 * duration_s, len(answer_ids))


def _load(config: ServerConfig) -> GenModel:
    model = load_models(config).gen
    assert model is not None
    return model


def _just_started(model: GenModel, config: ServerConfig) -> GenModel:
    """The model with an arena in which nothing is known to lie: with a scheduler as loading makes it."""
    root_tokens = model.scheduler.max_sequence_tokens
    arena = KvArena(model.scheduler.arena_tokens // root_tokens, root_tokens)
    max_num_batched_tokens = MAX_NUM_BATCHED_TOKENS[model.device_name.partition(":")[0]]
    limits = SchedulerLimits(max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=config.max_num_seqs)
    return replace(model, scheduler=Scheduler(arena, limits))


@asynccontextmanager
async def _served(config: ServerConfig, model: GenModel) -> AsyncIterator["_Stub"]:
    """A server over a loaded model, and a connection to it."""
    server = Server(config, Models(None, model))
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.channel_ready()
            yield moderation_pb2_grpc.ModerationServiceStub(channel)
    finally:
        await server.stop()


async def _classify(stub: "_Stub", text: str) -> Call:
    """One call.

    Raises:
        RuntimeError: If the answer is not one of the grammar or the prompt is not as long as it should be: then the
            call is not one of those that are to be measured.
    """
    request = pb.ClassifyRequest(messages=[pb.Message(role=pb.ROLE_USER, content=text)])
    started_s = time.perf_counter()
    response = await stub.Classify(request)
    duration_s = time.perf_counter() - started_s
    if not response.judged or response.usage.num_prompt_tokens != NUM_PROMPT_TOKENS:
        raise RuntimeError(f"{response.usage.num_prompt_tokens} tokens were answered with {response.answer!r}")
    return Call(response.answer, 1000 * duration_s, response.usage.num_forward_passes)
