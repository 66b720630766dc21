"""Classify answers, character by character, what transformers' greedy `generate` answers to the same template.

Calls run concurrently, so the server answers them in batches. Answers are guessed and verified, and prompts that begin
alike share keys and values: neither may change a character. What guesses are worth with random weights: nothing, so all
of them are taken back.
"""

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server import demo
from guardwire_server.config import ServerConfig
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.ragged_attention import kv_bytes_per_token
from tests.model.checkpoints import write_gen_checkpoint
from tests.parity.compute_paths import COMPUTE_PATHS, ComputePath
from tests.parity.gen_oracle import Conversation, GenAnswer, GenOracle
from tests.parity.served import Served, parity_config, serve

NUM_CONVERSATIONS = 200
NUM_CONCURRENT_CALLS = 16
SEED = 5
CROWDED_ARENA_TOKENS = 1024
CROWDED_CONTEXT_TOKENS = 512
"""Room for 4 of the 16 calls where prompts have more than 128 tokens, and so an extent of 256."""

TIES = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Below this distance of two logits, greedy decoding is a matter of how activations, keys and values, and sums are
rounded."""

MAX_TIES = 2
"""Among 25,600 tokens one such tie is likely, several are not."""

SYSTEM = ("You are a helpful assistant in a library.", "Antworte kurz und höflich.\n\n请用中文回答。")
ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT}


def conversations() -> list[Conversation]:
    """The demo's held-out conversations in every shape: alone, behind a system message, behind an earlier exchange."""
    files = [file for name in ("test", "dev") if (file := demo.handwritten_file(name)).is_file()]
    lines = itertools.chain.from_iterable(file.read_text().splitlines() for file in files)
    written: list[Conversation] = [
        tuple((message["role"], message["content"]) for message in json.loads(line)["messages"]) for line in lines
    ]
    exchanges = [messages for messages in written if messages[-1][0] == "assistant" and messages[0][0] == "user"]
    shaped: list[Conversation] = []
    for number, messages in enumerate(itertools.islice(itertools.cycle(written), NUM_CONVERSATIONS)):
        system, turns = messages[: messages[0][0] == "system"], messages[messages[0][0] == "system" :]
        if number % 4 in (1, 3):
            turns = (*exchanges[number % len(exchanges)], *turns)
        if number % 4 in (2, 3):
            system = (("system", SYSTEM[number % len(SYSTEM)]),)
        shaped.append((*system, *turns))
    return shaped


@pytest.mark.parametrize(
    ("tied", "policy", "num_conversations"), [(False, "default", NUM_CONVERSATIONS), (True, "observe", 40)]
)
async def test_answers_of_random_weights(tmp_path: Path, tied: bool, policy: str, num_conversations: int) -> None:
    """They run on to the last token and mean nothing; with a tied head they mostly repeat one token."""
    checkpoint, chats = write_random_checkpoint(tmp_path, tied=tied), conversations()[:num_conversations]
    answers = await asyncio.to_thread(GenOracle(checkpoint).answer_all, chats)
    async with serve(parity_config(gen_model=checkpoint)) as served:
        judged = await classify_all(served, chats, policy)
    compare(judged, answers, TIES[torch.float32])
    assert sum(answer.num_answer_tokens == 128 for answer in answers) > num_conversations / 2, "too few are long"
    assert tied or len({answer.text for answer in answers}) > num_conversations / 2, "too many are alike"
    for response in judged:
        assert not response.judged
        assert response.action == pb.ACTION_BLOCK  # the built-in policies' on_error
        assert response.reason == pb.DECISION_REASON_NOT_JUDGED
        assert response.risk_level == pb.RISK_LEVEL_UNSPECIFIED


@pytest.fixture(scope="module")
def demo_answers() -> list[GenAnswer]:
    return GenOracle(demo.gen_checkpoint_directory()).answer_all(conversations())


@pytest.mark.parametrize("path", COMPUTE_PATHS, ids=str)
async def test_answers_of_the_demo_checkpoint(path: ComputePath, demo_answers: list[GenAnswer]) -> None:
    """In an arena that holds a quarter of the calls, and what it still has of those before them."""
    chats = conversations()
    async with serve(crowded_config(path)) as served:
        assert served.models.gen
        scheduler = served.models.gen.scheduler
        assert scheduler.arena_tokens == CROWDED_ARENA_TOKENS
        assert path.is_taken_by(served.models.gen.backend)
        judged = await classify_all(served, chats, "default")
        assert scheduler.num_reused_tokens > 0.1 * sum(answer.num_prompt_tokens for answer in demo_answers)
    compare(judged, demo_answers, TIES[path.kv_dtype])
    num_passes = sum(response.usage.num_forward_passes for response in judged)
    assert num_passes < 0.5 * sum(answer.num_answer_tokens for answer in demo_answers), "guesses were of no use"
    num_judged = 0
    for response, answer in zip(judged, demo_answers, strict=True):
        if not response.judged:
            continue
        num_judged += 1
        lines = dict(line.split(": ") for line in answer.text.strip().splitlines())
        assert response.risk_level == getattr(pb, f"RISK_LEVEL_{lines['Safety'].upper()}")
        assert len(response.categories) == (0 if lines["Categories"] == "None" else lines["Categories"].count(",") + 1)
        assert answer.verdict
        told = response.probabilities
        verdict = (told.safe, told.controversial, told.unsafe)
        difference = max(abs(left - right) for left, right in zip(verdict, answer.verdict, strict=True))
        assert difference <= path.precision.tolerance
    assert num_judged > 0.9 * NUM_CONVERSATIONS, "the demo model leaves its grammar"


async def test_the_oracle_in_batches_answers_as_it_does_alone(tmp_path: Path) -> None:
    oracle, some = GenOracle(write_random_checkpoint(tmp_path, tied=False)), conversations()[::40]
    alone = [oracle.answer_batch([messages])[0] for messages in some]
    assert [answer.text for answer in oracle.answer_all(some)] == [answer.text for answer in alone]


def write_random_checkpoint(directory: Path, *, tied: bool) -> Path:
    return write_gen_checkpoint(directory / "gen", hidden=32, seed=SEED, tied=tied)


def crowded_config(path: ComputePath) -> ServerConfig:
    """A server with the demo checkpoint."""
    checkpoint = demo.gen_checkpoint_directory()
    bytes_per_token = kv_bytes_per_token(open_checkpoint(str(checkpoint)).config, path.kv_dtype)
    return parity_config(
        gen_model=checkpoint,
        max_context_tokens=CROWDED_CONTEXT_TOKENS,
        kv_memory_gib=CROWDED_ARENA_TOKENS * bytes_per_token / 2**30,
        **path.settings(),
    )


async def classify_all(served: Served, chats: Sequence[Conversation], policy: str) -> list[pb.ClassifyResponse]:
    """The server's answers."""
    slots = asyncio.Semaphore(NUM_CONCURRENT_CALLS)
    return await asyncio.gather(*(classify(served, slots, messages, policy) for messages in chats))


def compare(
    judged: Sequence[pb.ClassifyResponse], answers: Sequence[GenAnswer], tie: float = TIES[torch.float32]
) -> None:
    """Compares the server's answers with the oracle's, character by character."""
    num_ties = 0
    for number, (response, answer) in enumerate(zip(judged, answers, strict=True)):
        if answer.min_margin <= tie and response.answer != answer.text:
            num_ties += 1
            continue
        assert response.answer == answer.text, f"conversation {number}"
        assert response.usage.num_prompt_tokens == answer.num_prompt_tokens
        assert response.usage.num_answer_tokens == answer.num_answer_tokens
        assert response.HasField("probabilities") == (answer.verdict is not None)
    assert num_ties <= MAX_TIES


async def classify(
    served: Served, slots: asyncio.Semaphore, messages: Conversation, policy: str
) -> pb.ClassifyResponse:
    wire = [pb.Message(role=ROLES[role], content=content) for role, content in messages]
    async with slots:
        return await served.stub.Classify(pb.ClassifyRequest(messages=wire, policy=policy))
