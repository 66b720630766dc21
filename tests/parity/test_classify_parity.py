"""Classify answers, character by character, what transformers' greedy `generate` answers to the same template.

Calls run concurrently, so the server answers them in batches.
"""

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server import demo
from tests.model.checkpoints import write_gen_checkpoint
from tests.parity.gen_oracle import Conversation, GenAnswer, GenOracle
from tests.parity.served import Served, parity_config, serve

NUM_CONVERSATIONS = 200
NUM_CONCURRENT_CALLS = 16
SEED = 5
TOLERANCE = 1e-4
TIE = 1e-5
"""Below this distance of two logits, greedy decoding is a matter of the order of float32 sums."""

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
    checkpoint = write_random_checkpoint(tmp_path, tied=tied)
    judged, answers = await classify_and_generate(checkpoint, conversations()[:num_conversations], policy)
    assert sum(answer.num_answer_tokens == 128 for answer in answers) > num_conversations / 2, "too few are long"
    assert tied or len({answer.text for answer in answers}) > num_conversations / 2, "too many are alike"
    for response in judged:
        assert not response.judged
        assert response.action == pb.ACTION_BLOCK  # the built-in policies' on_error
        assert response.reason == pb.DECISION_REASON_NOT_JUDGED
        assert response.risk_level == pb.RISK_LEVEL_UNSPECIFIED


async def test_answers_of_the_demo_checkpoint() -> None:
    judged, answers = await classify_and_generate(demo.gen_checkpoint_directory(), conversations(), "default")
    num_judged = 0
    for response, answer in zip(judged, answers, strict=True):
        if not response.judged:
            continue
        num_judged += 1
        lines = dict(line.split(": ") for line in answer.text.strip().splitlines())
        assert response.risk_level == getattr(pb, f"RISK_LEVEL_{lines['Safety'].upper()}")
        assert len(response.categories) == (0 if lines["Categories"] == "None" else lines["Categories"].count(",") + 1)
        assert answer.verdict
        told = response.probabilities
        verdict = (told.safe, told.controversial, told.unsafe)
        assert max(abs(left - right) for left, right in zip(verdict, answer.verdict, strict=True)) <= TOLERANCE
    assert num_judged > 0.9 * NUM_CONVERSATIONS, "the demo model leaves its grammar"


async def test_the_oracle_in_batches_answers_as_it_does_alone(tmp_path: Path) -> None:
    oracle, some = GenOracle(write_random_checkpoint(tmp_path, tied=False)), conversations()[::40]
    alone = [oracle.answer_batch([messages])[0] for messages in some]
    assert [answer.text for answer in oracle.answer_all(some)] == [answer.text for answer in alone]


def write_random_checkpoint(directory: Path, *, tied: bool) -> Path:
    return write_gen_checkpoint(directory / "gen", hidden=32, seed=SEED, tied=tied)


async def classify_and_generate(
    directory: Path, chats: Sequence[Conversation], policy: str
) -> tuple[list[pb.ClassifyResponse], list[GenAnswer]]:
    """The server's answers and the oracle's, compared."""
    answers = await asyncio.to_thread(GenOracle(directory).answer_all, chats)
    async with serve(parity_config(gen_model=directory)) as served:
        slots = asyncio.Semaphore(NUM_CONCURRENT_CALLS)
        judged = await asyncio.gather(*(classify(served, slots, messages, policy) for messages in chats))
    num_ties = 0
    for number, (response, answer) in enumerate(zip(judged, answers, strict=True)):
        if answer.min_margin <= TIE and response.answer != answer.text:
            num_ties += 1
            continue
        assert response.answer == answer.text, f"conversation {number}: {chats[number]}"
        assert response.usage.num_prompt_tokens == answer.num_prompt_tokens
        assert response.usage.num_answer_tokens == answer.num_answer_tokens
        assert response.HasField("probabilities") == (answer.verdict is not None)
    assert num_ties <= MAX_TIES
    return judged, answers


async def classify(
    served: Served, slots: asyncio.Semaphore, messages: Conversation, policy: str
) -> pb.ClassifyResponse:
    wire = [pb.Message(role=ROLES[role], content=content) for role, content in messages]
    async with slots:
        return await served.stub.Classify(pb.ClassifyRequest(messages=wire, policy=policy))
