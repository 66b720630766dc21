"""What a caller can know of a server, and which values no state of a stream could accept.

Written from the comments of protos/guardwire/v1/moderation.proto, not from the server's code. A message may be wrong in
several ways, and the contract does not say which of them is told, so faults are sets of the statuses that fit.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc
from google.protobuf.message import Message

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.ports import TurnRenderer

if TYPE_CHECKING:  # loads torch, which raw bytes do without
    from tests.rpc.running_server import RunningServer

Code = grpc.StatusCode
Faults = set[grpc.StatusCode]


@dataclass(frozen=True)
class Served:
    """A server's models, policies and limits, and its stream model's template and tokenizer."""

    stream_model: pb.ModelInfo
    gen_model: pb.ModelInfo
    limits: pb.Limits
    policies: tuple[str, ...]
    renderer: TurnRenderer
    turn_control_ids: frozenset[int]  # those that open and close a turn

    @classmethod
    async def by(cls, server: "RunningServer") -> Self:
        """Asks a server of both models."""
        info, stream = await server.info(), server.models.stream
        assert stream
        by_kind = {model.kind: model for model in info.models}
        return cls(
            stream_model=by_kind[pb.MODEL_KIND_STREAM],
            gen_model=by_kind[pb.MODEL_KIND_GEN],
            limits=info.limits,
            policies=tuple(policy.name for policy in info.policies),
            renderer=stream.renderer,
            turn_control_ids=frozenset((stream.tokenizer.control.im_start, stream.tokenizer.control.im_end)),
        )

    def classify_faults(self, request: pb.ClassifyRequest) -> Faults:
        """What is wrong with a Classify request."""
        faults = self._name_faults(request.model, self.gen_model, request.policy)
        faults |= self._conversation_faults(request.messages, (pb.ROLE_USER, pb.ROLE_ASSISTANT))
        return faults | _enum_faults(request)

    def stream_faults(self, request: pb.ModerateStreamRequest) -> Faults:
        """What is wrong with a stream's message, whatever came before it."""
        faults = _enum_faults(request)
        match request.WhichOneof("request"):
            case None:
                faults.add(Code.INVALID_ARGUMENT)
            case "open":
                faults |= self._open_faults(request.open)
            case "tokens":
                faults |= self.id_faults(request.tokens.token_ids)
            case "text":
                faults |= self._size_faults(request.text.text)
            case "user_turn":
                faults |= self._user_turn_faults(request.user_turn)
        return faults

    def id_faults(self, token_ids: Sequence[int]) -> Faults:
        """What is wrong with the token ids of one message."""
        is_good = len(token_ids) <= self.limits.max_tokens_per_message and self._are_tokens(token_ids)
        return set() if is_good else {Code.INVALID_ARGUMENT}

    def _open_faults(self, request: pb.StreamOpen) -> Faults:
        faults = self._name_faults(request.model, self.stream_model, request.policy)
        if request.tokenizer_fingerprint not in ("", self.stream_model.tokenizer_fingerprint):
            faults.add(Code.FAILED_PRECONDITION)
        match request.WhichOneof("prompt"):
            case None:
                faults.add(Code.INVALID_ARGUMENT)
            case "conversation":
                faults |= self._conversation_faults(request.conversation.messages, (pb.ROLE_USER,))
            case "templated":
                ids = request.templated.token_ids
                if not self._are_tokens(ids) or self.renderer.find_query_index(array("q", ids)) is None:
                    faults.add(Code.INVALID_ARGUMENT)
        return faults

    def _user_turn_faults(self, request: pb.UserTurn) -> Faults:
        match request.WhichOneof("turn"):
            case "content":
                return self._content_faults(request.content)
            case "tokens":
                ids = request.tokens.token_ids
                return self.id_faults(ids) if ids else {Code.INVALID_ARGUMENT}
        return {Code.INVALID_ARGUMENT}

    def _conversation_faults(self, messages: Sequence[pb.Message], last_roles: Iterable[int]) -> Faults:
        has_system = bool(messages) and messages[0].role == pb.ROLE_SYSTEM
        turns = messages[1:] if has_system else messages
        in_turn = (pb.ROLE_USER, pb.ROLE_ASSISTANT)
        is_good = (
            len(messages) <= self.limits.max_messages
            and bool(turns)
            and all(message.role == in_turn[index % 2] for index, message in enumerate(turns))
            and turns[-1].role in last_roles
        )
        faults: Faults = set() if is_good else {Code.INVALID_ARGUMENT}
        return faults.union(*(self._content_faults(message.content) for message in messages))

    def _content_faults(self, content: str) -> Faults:
        return self._size_faults(content) if content.strip() else {Code.INVALID_ARGUMENT}

    def _size_faults(self, text: str) -> Faults:
        return set() if len(text.encode()) <= self.limits.max_message_bytes else {Code.INVALID_ARGUMENT}

    def _are_tokens(self, token_ids: Iterable[int]) -> bool:
        return all(token_id < self.stream_model.vocabulary_size for token_id in token_ids)

    def _name_faults(self, model_name: str, model: pb.ModelInfo, policy: str) -> Faults:
        is_known = model_name in ("", model.name) and policy in ("", *self.policies)
        return set() if is_known else {Code.NOT_FOUND}


def _enum_faults(message: Message) -> Faults:
    """Numbers that the contract does not list, anywhere in a message."""
    faults: Faults = set()
    for field, value in message.ListFields():
        values = value if field.is_repeated else (value,)
        if field.enum_type is not None and any(one not in field.enum_type.values_by_number for one in values):
            faults.add(Code.INVALID_ARGUMENT)
        if field.message_type is not None:
            faults.update(*(_enum_faults(one) for one in values))
    return faults
