"""Measures the two checkpoints on held-out conversations and prints one table."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from guardwire_server.core.answer import UnparsableAnswer, parse_answer
from guardwire_server.core.policy import BUILT_IN_POLICIES, AnswerJudge
from guardwire_server.core.verdict import Category, RiskLevel, VerdictArrays
from guardwire_server.demo.answers import Answer
from guardwire_server.demo.conversations import Conversation, ConversationSampler, Exchange
from guardwire_server.demo.corpus import Corpus
from guardwire_server.demo.labels import CATEGORY_NAMES, GEN_CATEGORY_NAMES, RISK_NAMES, SAFE, SAFE_LABEL, Label
from guardwire_server.demo.networks import hidden_states, load_gen, load_stream
from guardwire_server.demo.optimisation import pad
from guardwire_server.demo.prompts import Prompt
from guardwire_server.demo.training_data import GenRenderer, StreamRenderer, control_id
from guardwire_server.model.stream_backend import pack_verdicts
from guardwire_server.model.stream_guard import StreamGuard

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
    """Conversations of sentences and words that no training conversation uses; of templates alone, or of all lines."""
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


def decide(verdicts: VerdictArrays) -> Label:
    """What an answer amounts to under the server's default policy."""
    judge = AnswerJudge(BUILT_IN_POLICIES[0], turn=0, first_index=0)
    for index in range(len(verdicts)):
        judge.judge(verdicts[index], scaffold=False)
    return to_label(judge.state.risk_level, judge.state.category)


def to_label(risk_level: RiskLevel, category: Category | None) -> Label:
    """The server's words as class indices."""
    return Label(RISK_NAMES.index(risk_level.name.capitalize()), category - 1 if category else None)


@torch.inference_mode()
def _judge_by_stream(
    guard: StreamGuard, tokenizer: Tokenizer, conversations: list[Conversation]
) -> list[tuple[Label, Label | None]]:
    renderer = StreamRenderer(tokenizer)
    labels: list[tuple[Label, Label | None]] = []
    for start in range(0, len(conversations), _BATCH):
        sequences = [renderer.render(conversation) for conversation in conversations[start : start + _BATCH]]
        hidden = hidden_states(guard, pad([sequence.ids for sequence in sequences], 0))
        for row, sequence in enumerate(sequences):
            last = max(index for index, risk in enumerate(sequence.queries.risk) if risk >= 0)
            verdict = pack_verdicts(*guard.query_probabilities(hidden[row, last : last + 1]))[0]
            prompt = to_label(verdict.risk_level, verdict.category)
            if sequence.final_answer is None:
                labels.append((prompt, None))
            else:
                answer = hidden[row, slice(*sequence.final_answer)]
                labels.append((prompt, decide(pack_verdicts(*guard.response_probabilities(answer)))))
    return labels


@torch.inference_mode()
def _answers_of_gen(directory: Path, tokenizer: Tokenizer, chats: list[list[dict[str, str]]]) -> list[str]:
    network = load_gen(directory)
    template = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    renderer = GenRenderer(tokenizer, template)
    prompts = [renderer.prompt(messages).ids for messages in chats]
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


def parse_gen(text: str, *, expects_refusal: bool) -> tuple[Label | None, bool | None]:
    """Reads Gen's answer as the server does; None where it does not follow the grammar."""
    try:
        answer = parse_answer(text, expects_refusal=expects_refusal)
    except UnparsableAnswer:
        return None, None
    return to_label(answer.risk_level, answer.categories[0] if answer.categories else None), answer.refusal


def judge(stream_directory: Path, gen_directory: Path, conversations: list[Conversation]) -> list[Judged]:
    """Runs both saved checkpoints over the conversations."""
    tokenizer = Tokenizer.from_file(str(stream_directory / "tokenizer.json"))
    by_stream = _judge_by_stream(load_stream(stream_directory), tokenizer, conversations)
    chats = [conversation.messages for conversation in conversations]
    asked = [chat[:-1] if chat[-1]["role"] == "assistant" else chat for chat in chats]
    texts = _answers_of_gen(gen_directory, tokenizer, [*asked, *chats])
    answers = [
        parse_gen(text, expects_refusal=chat[-1]["role"] == "assistant")
        for text, chat in zip(texts, [*asked, *chats], strict=True)
    ]
    by_gen = zip(answers[: len(chats)], answers[len(chats) :], strict=True)
    judged: list[Judged] = []
    for conversation, stream, ((gen_prompt, _), (gen_answer, refused)) in zip(
        conversations, by_stream, by_gen, strict=True
    ):
        answered = conversation.exchanges[-1].answer is not None
        judged.append(Judged(conversation, *stream, gen_prompt, gen_answer if answered else None, refused))
    return judged
