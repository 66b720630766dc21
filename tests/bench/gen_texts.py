"""Compares the server's answers with the texts of transformers' greedy `generate`, on the demo checkpoint.

Random weights would say nothing here: their answers are either meaningless or taught. The demo checkpoint answers what
it was trained to, with the close calls that a trained model has. Calls run many at once, so the server answers them in
batches, out of each other's prefixes.
"""

import asyncio
from collections.abc import Sequence

import torch

from guardwire_server import demo
from guardwire_server.demo.conversations import ConversationSampler
from guardwire_server.demo.corpus import load_corpus
from tests.bench.progress import say
from tests.parity.gen_oracle import Conversation, GenOracle
from tests.parity.served import parity_config, serve
from tests.parity.test_classify_parity import NUM_CONCURRENT_CALLS, classify, conversations

_SEED = 11


async def compare_texts(num_texts: int) -> dict[str, object]:
    """How many texts were compared, how many answers were parsed, and how many texts differ in any character."""
    say(f"comparing the answers to {num_texts} conversations")
    chats, directory = _conversations(num_texts), demo.gen_checkpoint_directory()
    generated = await asyncio.to_thread(GenOracle(directory).answer_all, chats)
    async with serve(parity_config(gen_model=directory, num_threads=torch.get_num_threads())) as served:
        slots = asyncio.Semaphore(NUM_CONCURRENT_CALLS)
        judged = await asyncio.gather(*(classify(served, slots, messages, "default") for messages in chats))
    pairs = list(zip(judged, generated, strict=True))
    return {
        "num_texts_compared": len(pairs),
        "num_texts_judged": sum(response.judged for response, _ in pairs),
        "num_texts_different": sum(response.answer != answer.text for response, answer in pairs),
    }


def _conversations(count: int) -> Sequence[Conversation]:
    """Those of the parity tests, which people wrote, and as many sampled ones as are still needed."""
    written = conversations()[:count]
    sampler = ConversationSampler(load_corpus(demo.corpus_directory()), "held_out", _SEED)
    sampled = [
        tuple((message["role"], message["content"]) for message in chat.messages)
        for chat in sampler.stream(count - len(written))
    ]
    return [*written, *sampled]
