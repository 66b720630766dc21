"""Protobuf requests as the core's events. Values are checked here; what a stream's state allows, the session checks."""

from array import array
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core import events as ev
from guardwire_server.core.errors import InvalidField
from guardwire_server.core.policy import Policy
from guardwire_server.core.verdict import Message, Role
from guardwire_server.rpc.catalogue import Catalogue, ServedModel, check_fingerprint, check_model_name

_EnumT = TypeVar("_EnumT", bound=Enum)

_THINKING = {pb.THINKING_UNSPECIFIED: ev.Thinking.OFF, pb.THINKING_OFF: ev.Thinking.OFF, pb.THINKING_ON: ev.Thinking.ON}
_INPUT_KINDS = {
    pb.INPUT_KIND_UNSPECIFIED: ev.InputKind.TOKENS,
    pb.INPUT_KIND_TOKENS: ev.InputKind.TOKENS,
    pb.INPUT_KIND_TEXT: ev.InputKind.TEXT,
}
_UPDATE_MODES = {
    pb.UPDATE_MODE_UNSPECIFIED: ev.UpdateMode.EVERY_TOKEN,
    pb.UPDATE_MODE_EVERY_TOKEN: ev.UpdateMode.EVERY_TOKEN,
    pb.UPDATE_MODE_ON_CHANGE: ev.UpdateMode.ON_CHANGE,
}
_CONTEXT_OVERFLOWS = {
    pb.CONTEXT_OVERFLOW_UNSPECIFIED: ev.ContextOverflow.FAIL,
    pb.CONTEXT_OVERFLOW_FAIL: ev.ContextOverflow.FAIL,
    pb.CONTEXT_OVERFLOW_SLIDE: ev.ContextOverflow.SLIDE,
}
_ROLES = {pb.ROLE_SYSTEM: Role.SYSTEM, pb.ROLE_USER: Role.USER, pb.ROLE_ASSISTANT: Role.ASSISTANT}

MAX_STEP_TOKENS = 16_384
"""Tokens of one packed message: far more than a device generates in a step, and what they cost here at worst, when
every one of them is an error, keeps others waiting for less than a second."""


MAX_REQUESTS = 16_384
"""Requests of one message of ModerateStreams. Handling them gives way to other calls, but parsing them does not."""


class RequestReader:
    """Reads requests against a catalogue. Stateless; any thread. Tokens are those below `vocabulary_size`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._limits = catalogue.limits
        self._max_tokens_per_message = catalogue.limits.max_tokens_per_message
        self.vocabulary_size = catalogue.stream_model.vocabulary_size if catalogue.stream_model else 0

    def classify(self, request: pb.ClassifyRequest) -> tuple[tuple[Message, ...], Policy]:
        """The conversation and the policy of a Classify call.

        Raises:
            CallerError: Naming the field at fault.
        """
        check_model_name(self._catalogue.require_gen_model(), request.model, "model")
        policy = self._catalogue.policy(request.policy, "policy")
        messages = self._messages(request.messages, "messages")
        if messages[-1].role is Role.SYSTEM:
            raise InvalidField("NOTHING_TO_JUDGE", "messages", "the last message must be the user's or the assistant's")
        return messages, policy

    def tokenizer_model(self, request: pb.GetTokenizerRequest) -> ServedModel:
        """The model whose tokenizer a GetTokenizer call asks for.

        Raises:
            CallerError: Naming the field at fault.
        """
        if request.model_kind not in pb.ModelKind.values():
            raise _unknown_value(request.model_kind, "ModelKind", "model_kind")
        is_gen = request.model_kind == pb.MODEL_KIND_GEN
        return self._catalogue.require_gen_model() if is_gen else self._catalogue.require_stream_model()

    def single_token(self, request: pb.ModerateStreamRequest) -> int | None:
        """The token of a stream message that brings one, wherever the answer stands: by far the most frequent.

        None: it is another message, or not a valid one; then `stream_event` tells.
        """
        tokens = request.tokens
        token_ids = tokens.token_ids
        if len(token_ids) != 1 or tokens.HasField("start_index"):
            return None
        token_id: int = token_ids[0]
        return token_id if token_id < self.vocabulary_size else None

    def stream_event(self, request: pb.ModerateStreamRequest) -> ev.CallerEvent:
        """The event of one stream message.

        Raises:
            CallerError: Naming the field at fault.
        """
        match request.WhichOneof("request"):
            case "open":
                return self._open(request.open)
            case "tokens":
                tokens = request.tokens
                start_index = tokens.start_index if tokens.HasField("start_index") else None
                return ev.TokensPushed(self._pushed_ids(tokens.token_ids, "tokens.token_ids"), start_index)
            case "text":
                self._check_size(request.text.text, "text.text")
                return ev.TextPushed(request.text.text, request.text.flush)
            case "rollback":
                return ev.RollbackRequested(request.rollback.num_tokens_kept)
            case "user_turn":
                return self._user_turn(request.user_turn)
            case "finish":
                return ev.FinishRequested()
        raise InvalidField(
            "EMPTY_REQUEST", "request", "one of open, tokens, text, rollback, user_turn, finish is required"
        )

    def check_num_requests(self, num_requests: int) -> None:
        """Checks a message of ModerateStreams.

        Raises:
            InvalidField: It has too many requests.
        """
        if num_requests > MAX_REQUESTS:
            message = f"{num_requests} requests in one message, the limit is {MAX_REQUESTS}"
            raise InvalidField("TOO_MANY_REQUESTS", "requests", message)

    def token_step(self, step: pb.TokenStep) -> list[tuple[int, int]]:
        """The (stream id, token id) of a packed message.

        Raises:
            InvalidField: If there is not one token for each stream, or there are too many.
        """
        num_streams, num_tokens = len(step.stream_ids), len(step.token_ids)
        if num_streams != num_tokens:
            message = f"{num_tokens} ids for {num_streams} streams, one for each is required"
            raise InvalidField("STEP_LENGTHS_DIFFER", "step.token_ids", message)
        if num_tokens > MAX_STEP_TOKENS:
            message = f"{num_tokens} ids in one step, the limit is {MAX_STEP_TOKENS}"
            raise InvalidField("TOO_MANY_TOKENS", "step.token_ids", message)
        return list(zip(step.stream_ids, step.token_ids, strict=True))

    def step_event(self, token_id: int, index: int) -> ev.TokensPushed | ev.InputRefused:
        """The event of the token at `index` of a packed message."""
        if token_id >= self.vocabulary_size:
            return ev.InputRefused(self._beyond_vocabulary(f"step.token_ids[{index}]"))
        return ev.TokensPushed(array("i", (token_id,)))

    def _open(self, request: pb.StreamOpen) -> ev.OpenRequested:
        model = self._catalogue.require_stream_model()
        check_model_name(model, request.model, "open.model")
        check_fingerprint(model, request.tokenizer_fingerprint, "open.tokenizer_fingerprint")
        return ev.OpenRequested(
            prompt=self._prompt(request),
            policy=self._catalogue.policy(request.policy, "open.policy"),
            thinking=_enum_value(request.thinking, _THINKING, "Thinking", "open.thinking"),
            input_kind=_enum_value(request.input, _INPUT_KINDS, "InputKind", "open.input"),
            update_mode=_enum_value(request.update_mode, _UPDATE_MODES, "UpdateMode", "open.update_mode"),
            end_on_block=request.end_on_block,
            observe_only=request.observe_only,
            resume_from=request.resume_from,
            context_overflow=_enum_value(
                request.context_overflow, _CONTEXT_OVERFLOWS, "ContextOverflow", "open.context_overflow"
            ),
        )

    def _prompt(self, request: pb.StreamOpen) -> "tuple[Message, ...] | array[int]":
        match request.WhichOneof("prompt"):
            case "conversation":
                field = "open.conversation.messages"
                messages = self._messages(request.conversation.messages, field)
                if messages[-1].role is not Role.USER:
                    raise InvalidField("USER_LAST", field, "the last message must be the user's")
                return messages
            case "templated":
                return self._ids(request.templated.token_ids, "open.templated.token_ids")
        raise InvalidField("PROMPT_REQUIRED", "open.prompt", "one of conversation, templated is required")

    def _user_turn(self, request: pb.UserTurn) -> ev.UserTurnAdded:
        match request.WhichOneof("turn"):
            case "content":
                self._check_content(request.content, "user_turn.content")
                return ev.UserTurnAdded(request.content)
            case "tokens":
                ids = self._pushed_ids(request.tokens.token_ids, "user_turn.tokens.token_ids")
                if not ids:
                    raise InvalidField("EMPTY_CONTENT", "user_turn.tokens.token_ids", "must not be empty")
                return ev.UserTurnAdded(ids)
        raise InvalidField("CONTENT_REQUIRED", "user_turn.turn", "one of content, tokens is required")

    def _messages(self, messages: Sequence[pb.Message], field: str) -> tuple[Message, ...]:
        if not messages:
            raise InvalidField("EMPTY_CONVERSATION", field, "must not be empty")
        limit = self._limits.max_messages
        if len(messages) > limit:
            raise InvalidField("TOO_MANY_MESSAGES", field, f"{len(messages)} messages, the limit is {limit}")
        read = tuple(self._message(message, f"{field}[{index}]", index) for index, message in enumerate(messages))
        _check_turns(read, field)
        return read

    def _message(self, message: pb.Message, field: str, index: int) -> Message:
        role = _enum_value(message.role, _ROLES, "Role", f"{field}.role")
        if role is Role.SYSTEM and index:
            raise InvalidField("SYSTEM_FIRST", f"{field}.role", "only the first message can be the system's")
        self._check_content(message.content, f"{field}.content")
        return Message(role, message.content)

    def _check_content(self, content: str, field: str) -> None:
        if not content.strip():
            raise InvalidField("EMPTY_CONTENT", field, "must not be empty or blank")
        self._check_size(content, field)

    def _check_size(self, text: str, field: str) -> None:
        num_bytes, limit = len(text.encode()), self._limits.max_message_bytes
        if num_bytes > limit:
            raise InvalidField("CONTENT_TOO_LARGE", field, f"{num_bytes} bytes, the limit is {limit}")

    def _pushed_ids(self, token_ids: Sequence[int], field: str) -> "array[int]":
        limit = self._max_tokens_per_message
        if len(token_ids) > limit:
            raise InvalidField("TOO_MANY_TOKENS", field, f"{len(token_ids)} ids in one message, the limit is {limit}")
        return self._ids(token_ids, field)

    def _ids(self, token_ids: Sequence[int], field: str) -> "array[int]":
        limit = self.vocabulary_size
        if token_ids and max(token_ids) >= limit:
            index = next(index for index, token_id in enumerate(token_ids) if token_id >= limit)
            raise self._beyond_vocabulary(f"{field}[{index}]")
        return array("i", token_ids)

    def _beyond_vocabulary(self, field: str) -> InvalidField:
        message = f"not a token, ids must be below {self.vocabulary_size}"
        return InvalidField("TOKEN_ID_BEYOND_VOCABULARY", field, message)


def _check_turns(messages: Sequence[Message], field: str) -> None:
    """Checks that user and assistant speak in turn, the user first; a system message may stand before them."""
    first = 1 if messages[0].role is Role.SYSTEM else 0
    for index in range(first, len(messages)):
        expected = Role.ASSISTANT if (index - first) % 2 else Role.USER
        if messages[index].role is not expected:
            reason = "USER_FIRST" if index == first else "ROLES_ALTERNATE"
            raise InvalidField(
                reason, f"{field}[{index}].role", f"user and assistant speak in turn, here the {expected.name.lower()}"
            )


def _enum_value(value: int, values: Mapping[Any, _EnumT], enum_name: str, field: str) -> _EnumT:
    if value not in values:
        raise _unknown_value(value, enum_name, field)
    return values[value]


def _unknown_value(value: int, enum_name: str, field: str) -> InvalidField:
    enum = pb.DESCRIPTOR.enum_types_by_name[enum_name]
    names = ", ".join(known.name for known in enum.values if known.number)
    return InvalidField("UNKNOWN_ENUM_VALUE", field, f"{value} is none of {names}")
