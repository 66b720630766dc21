"""Measures the two checkpoints on held-out conversations and prints one table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from guardwire_server.demo.answers import Answer
from guardwire_server.demo.conversations import Conversation, ConversationSampler, Exchange
from guardwire_server.demo.corpus import Corpus
from guardwire_server.demo.labels import (
    CATEGORY_NAMES,
    CONTROVERSIAL,
    GEN_CATEGORY_NAMES,
    RISK_NAMES,
    SAFE,
    SAFE_LABEL,
    UNSAFE,
    Label,
)
from guardwire_server.demo.networks import StreamGuardNetwork, load_gen, load_stream
from guardwire_server.demo.optimisation import pad
from guardwire_server.demo.prompts import Prompt
from guardwire_server.demo.training_data import GenRenderer, StreamRenderer, control_id

_BATCH = 64
_MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class Judged:
    """What the checkpoints said about one conversation; None where a part was not judged."""

    conversation: Conversation
    stream_prompt: Label
    stream_answer: Label | None
    gen_prompt: Label | None
    gen_answer: Label | None
    gen_refused: bool | None


def held_out_conversations(corpus: Corpus, count: int) -> list[Conversation]:
    """Conversations of sentences and words that no training conversation uses."""
    return list(ConversationSampler(corpus, "held_out", seed=7, rough=False).stream(count))


def read_handwritten(path: Path) -> list[Conversation]:
    """Reads a hand-written set; earlier turns carry no label there and count as Safe."""
    return [_from_record(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _from_record(record: dict[str, object]) -> Conversation:
    messages = record["messages"]
    assert isinstance(messages, list)
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = [message["content"] for message in messages if message["role"] != "system"]
    exchanges: list[Exchange] = []
    for index in range(0, len(turns), 2):
        last = index + 2 >= len(turns)
        label = _label(record["prompt"]) if last else SAFE_LABEL
        answer = None
        if index + 1 < len(turns):
            verdict = record["response"] if last else None
            answer_label = _label(verdict)
            start = None if answer_label.risk == SAFE else 0
            refused = isinstance(verdict, dict) and verdict.get("refusal") in (True, "Yes")
            answer = Answer(turns[index + 1], answer_label, start, refused)
        exchanges.append(Exchange(Prompt(turns[index], label), answer))
    return Conversation(tuple(exchanges), system)


def _label(verdict: object) -> Label:
    if not isinstance(verdict, dict) or verdict["risk"] == "Safe":
        return SAFE_LABEL
    names = GEN_CATEGORY_NAMES if verdict["category"] in GEN_CATEGORY_NAMES else CATEGORY_NAMES
    return Label(RISK_NAMES.index(verdict["risk"]), names.index(verdict["category"]))


def decide(risks: Sequence[int], categories: Sequence[int]) -> Label:
    """The published debounce: the first two Unsafe tokens in a row decide, else the first two Controversial ones."""
    for risk in (UNSAFE, CONTROVERSIAL):
        for index in range(1, len(risks)):
            if risks[index - 1] == risks[index] == risk:
                return Label(risk, categories[index])
    return SAFE_LABEL


@torch.inference_mode()
def _judge_by_stream(
    network: StreamGuardNetwork, tokenizer: Tokenizer, conversations: list[Conversation]
) -> list[tuple[Label, Label | None]]:
    renderer = StreamRenderer(tokenizer)
    verdicts: list[tuple[Label, Label | None]] = []
    for start in range(0, len(conversations), _BATCH):
        sequences = [renderer.render(conversation) for conversation in conversations[start : start + _BATCH]]
        hidden = network.hidden_states(pad([sequence.ids for sequence in sequences], 0))
        query = [logits.argmax(-1).tolist() for logits in network.judge_query(hidden)]
        answer = [logits.argmax(-1).tolist() for logits in network.judge_answer(hidden)]
        for row, sequence in enumerate(sequences):
            last = max(index for index, risk in enumerate(sequence.query_risk) if risk >= 0)
            risk = query[0][row][last]
            prompt = Label(risk, query[1][row][last]) if risk != SAFE else SAFE_LABEL
            span = slice(*sequence.final_answer) if sequence.final_answer else None
            verdicts.append((prompt, None if span is None else decide(answer[0][row][span], answer[1][row][span])))
    return verdicts


@torch.inference_mode()
def _answers_of_gen(directory: Path, tokenizer: Tokenizer, chats: list[list[dict[str, str]]]) -> list[str]:
    network = load_gen(directory)
    template = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    renderer = GenRenderer(tokenizer, template)
    prompts = [renderer.prompt_ids(messages) for messages in chats]
    fill = control_id(tokenizer, "<|endoftext|>")
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        width = max(len(prompts[index]) for index in chosen)
        ids = torch.tensor([[fill] * (width - len(prompts[index])) + prompts[index] for index in chosen])
        output = network.generate(  # type: ignore[misc]
            input_ids=ids, attention_mask=ids.ne(fill).long(), max_new_tokens=_MAX_NEW_TOKENS, do_sample=False
        )
        for row, index in enumerate(chosen):
            answers[index] = tokenizer.decode(output[row, width:].tolist(), skip_special_tokens=True)
    return answers


def parse_gen(answer: str) -> tuple[Label | None, bool | None]:
    """Reads Gen's answer; None where a line is missing or unknown."""
    fields = dict(line.split(": ", 1) for line in answer.strip().splitlines() if ": " in line)
    refused = {"Yes": True, "No": False}.get(fields.get("Refusal", ""))
    if fields.get("Safety") not in RISK_NAMES:
        return None, refused
    category = fields.get("Categories", "None")
    return Label(
        RISK_NAMES.index(fields["Safety"]),
        GEN_CATEGORY_NAMES.index(category) if category in GEN_CATEGORY_NAMES else None,
    ), refused


def judge(stream_directory: Path, gen_directory: Path, conversations: list[Conversation]) -> list[Judged]:
    """Runs both saved checkpoints over the conversations."""
    tokenizer = Tokenizer.from_file(str(stream_directory / "tokenizer.json"))
    by_stream = _judge_by_stream(load_stream(stream_directory), tokenizer, conversations)
    chats = [conversation.messages for conversation in conversations]
    asked = [chat[:-1] if chat[-1]["role"] == "assistant" else chat for chat in chats]
    answers = [parse_gen(text) for text in _answers_of_gen(gen_directory, tokenizer, [*asked, *chats])]
    by_gen = zip(answers[: len(chats)], answers[len(chats) :], strict=True)
    judged: list[Judged] = []
    for conversation, stream, ((gen_prompt, _), (gen_answer, refused)) in zip(
        conversations, by_stream, by_gen, strict=True
    ):
        answered = conversation.exchanges[-1].answer is not None
        judged.append(Judged(conversation, *stream, gen_prompt, gen_answer if answered else None, refused))
    return judged
