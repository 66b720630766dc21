"""What good callers say in the fields of the contract, and a little beyond."""

from collections.abc import Sequence

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import Thinking
from guardwire_server.core.verdict import Message, Role
from tests.fuzz.choices import Choices
from tests.fuzz.messages import Maker, text
from tests.fuzz.served import Served
from tests.rpc.messages import answer_ids

STREAM_IDS = (1, 2, 0, 2**64 - 1)
"""The streams of a call of ModerateStreams."""

_KINDS = ("open", "tokens", "text", "rollback", "user_turn", "finish")
_MAX_INDEX = 64


def likely(served: Served) -> dict[str, Maker]:
    """By field, for `MessageMaker`."""
    limits, model = served.limits, served.stream_model

    def content(choices: Choices) -> str:
        return text(choices, limits.max_message_bytes)

    def token_ids(choices: Choices) -> list[int]:
        if choices.seldom():
            edges = (0, 1, model.vocabulary_size - 1, model.vocabulary_size, *served.turn_control_ids, 2**32 - 1)
            return [choices.pick(edges) for _ in range(choices.below(4))]
        return answer(choices, limits.max_tokens_per_message)

    def template(choices: Choices) -> list[int]:
        rendered = served.renderer.prompt([Message(Role.USER, content(choices))], Thinking.OFF).token_ids
        return [*rendered, *(token_ids(choices) if choices.seldom() else ())]

    return {
        "ClassifyRequest.messages": lambda choices: _turns(choices, limits, 1 + choices.below(2)),
        "ClassifyRequest.model": _one_of("", served.gen_model.name),
        "ClassifyRequest.policy": _one_of("", *served.policies),
        "Conversation.messages": lambda choices: _turns(choices, limits, 1),
        "ModerateStreamRequest.request": _one_of(*_KINDS),
        "PushText.flush": Choices.flip,
        "PushText.text": content,
        "PushTokens.start_index": lambda choices: choices.below(_MAX_INDEX) if choices.flip() else None,
        "PushTokens.token_ids": token_ids,
        "Rollback.num_tokens_kept": lambda choices: choices.below(_MAX_INDEX),
        "StreamOpen.context_overflow": _one_of(*pb.ContextOverflow.values()),
        "StreamOpen.end_on_block": Choices.seldom,
        "StreamOpen.input": _one_of(*pb.InputKind.values()),
        "StreamOpen.model": _one_of("", model.name),
        "StreamOpen.observe_only": Choices.flip,
        "StreamOpen.policy": _one_of("", *served.policies),
        "StreamOpen.prompt": _one_of("conversation", "conversation", "templated"),
        "StreamOpen.resume_from": _one_of(0, 0, 0, 0, 1, 5, 40, 2**64 - 1),
        "StreamOpen.thinking": _one_of(*pb.Thinking.values()),
        "StreamOpen.tokenizer_fingerprint": _one_of("", model.tokenizer_fingerprint),
        "StreamOpen.update_mode": _one_of(*pb.UpdateMode.values()),
        "StreamRequest.stream_id": _one_of(*STREAM_IDS),
        "TemplatedPrompt.token_ids": template,
        "TokenStep.stream_ids": lambda choices: [choices.pick(STREAM_IDS) for _ in range(choices.below(4))],
        "TokenStep.token_ids": token_ids,
        "UserTokens.token_ids": token_ids,
        "UserTurn.content": content,
    }


def answer(choices: Choices, max_tokens: int) -> list[int]:
    """Ids of plain tokens: one, as a language model gives them, or up to the limit."""
    num_tokens = choices.pick((0, 0, max_tokens + 1) if choices.seldom() else (1, 1, 1, 3, max_tokens))
    return answer_ids(num_tokens, choices.below(8))


def near_index(choices: Choices, lowest: int, highest: int) -> int:
    """Mostly an index that is allowed."""
    if choices.seldom():
        return choices.pick((max(0, lowest - 1), highest + 1, 0, 2**64 - 1))
    return choices.between(lowest, highest)


def _one_of(*values: object) -> Maker:
    return lambda choices: choices.pick(values)


def _turns(choices: Choices, limits: pb.Limits, num_last: int) -> Sequence[pb.Message]:
    """A conversation in order whose number of turns is `num_last` and an even number; seldom too long a one."""
    num_pairs = choices.pick((1, 1, limits.max_messages // 2) if choices.seldom() else (0, 0, 0, 1))
    roles = [pb.ROLE_SYSTEM] if choices.seldom() else []
    roles += [pb.ROLE_ASSISTANT if index % 2 else pb.ROLE_USER for index in range(2 * num_pairs + num_last)]
    return [pb.Message(role=role, content=text(choices, limits.max_message_bytes)) for role in roles]
