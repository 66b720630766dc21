"""One stream as the contract has it: which messages it accepts, what it holds then, and how it may end.

An oracle for sequences of messages, whatever the server makes of their timing. It counts tokens and knows no verdicts.
"""

from array import array
from collections.abc import Sequence

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import RenderedTurn, Thinking
from guardwire_server.core.verdict import Message, Role
from tests.fuzz.served import Code, Faults, Served

MIN_WINDOW_TOKENS = 2
"""An answer of fewer tokens has no older half that could leave the context."""


class Contract:
    """Follows the messages of one stream, from its first one on.

    `faults` are the statuses that its first bad message may get, and `kinds` the roots of the fields that the error may
    name. A message behind `finish` is bad, but comes too late if the stream has ended by then: `may_end_well`.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._text = served.renderer.text_stream()
        self.options: pb.StreamOpen | None = None
        self.faults: Faults = set()
        self.kinds: set[str] = set()
        self.is_finished = False
        self.ids: list[int] = []
        self.ends: list[int] = []  # where each token ends in the text, on text streams
        self.num_turns = 0
        self.num_rollbacks = 0
        self.first_index = 0  # of the present answer
        self.window_index = 0  # the answer's first token that is still in the context
        self.num_reported_before = 0
        self._answer_position = 0
        self._num_positions = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing that follows can change anything."""
        return bool(self.faults)

    @property
    def may_end_well(self) -> bool:
        return self.is_finished

    @property
    def is_text(self) -> bool:
        return self.options is not None and self.options.input == pb.INPUT_KIND_TEXT

    @property
    def tells_every_token(self) -> bool:
        return self.options is not None and self.options.update_mode != pb.UPDATE_MODE_ON_CHANGE

    @property
    def may_be_blocked(self) -> bool:
        """Whether a decision may end the stream at any time."""
        return self.options is not None and self.options.end_on_block and not self.options.observe_only

    @property
    def num_tokens_left(self) -> int:
        """What the context has room for."""
        return self._served.stream_model.max_context_tokens - self._num_positions

    def take(self, request: pb.ModerateStreamRequest) -> None:
        """Takes the next message; those behind a bad one change nothing."""
        if self.is_over:
            return
        kind = request.WhichOneof("request")
        self.kinds = {kind or "request"}
        self.faults = self._served.stream_faults(request) | self._order_faults(kind)
        if self.is_over:
            return
        match kind:
            case "open":
                self._open(request.open)
            case "tokens":
                self._take_tokens(request.tokens)
            case "text":
                flushed = self._text.flush if request.text.flush else list[tuple[int, int]]
                self._push([*self._text.push(request.text.text), *flushed()])
            case "rollback":
                self._roll_back(request.rollback.num_tokens_kept)
            case "user_turn":
                self._add_user_turn(request.user_turn)
            case "finish":
                self._flush()
                self.is_finished = not self.is_over

    def _order_faults(self, kind: str | None) -> Faults:
        is_first, input_kind = self.options is None, "text" if self.is_text else "tokens"
        is_bad = (kind == "open") is not is_first or self.is_finished or kind in {"text", "tokens"} - {input_kind}
        return {Code.FAILED_PRECONDITION} if is_bad else set()

    def _open(self, request: pb.StreamOpen) -> None:
        prompt = _rendered_prompt(self._served, request)
        self._begin_turn(prompt)
        if not self.is_over:
            self.options = request
            self.num_reported_before = request.resume_from

    def _take_tokens(self, request: pb.PushTokens) -> None:
        start, ids = request.start_index, list(request.token_ids)
        if request.HasField("start_index") and start != len(self.ids):
            is_repeat = start < len(self.ids) and self.ids[start : start + len(ids)] == ids
            if not (self._options.resume_from and is_repeat):
                self.faults = {Code.OUT_OF_RANGE}
            return
        self._push([(token_id, 0) for token_id in ids])

    def _roll_back(self, num_tokens_kept: int) -> None:
        if not self.window_index <= num_tokens_kept <= len(self.ids):
            self.faults = {Code.OUT_OF_RANGE}
            return
        self._num_positions -= len(self.ids) - num_tokens_kept
        del self.ids[num_tokens_kept:], self.ends[num_tokens_kept:]
        self._text.restart(self.ends[-1] if self.ends else 0)
        self.num_rollbacks += 1
        self.num_reported_before = min(self.num_reported_before, num_tokens_kept)

    def _add_user_turn(self, request: pb.UserTurn) -> None:
        self._flush()
        if self.is_over:
            return
        if self._served.turn_control_ids.intersection(request.tokens.token_ids):
            self.faults = {Code.INVALID_ARGUMENT}
            return
        content = request.content if request.HasField("content") else array("i", request.tokens.token_ids)
        tail = self.ids[max(self.first_index, len(self.ids) - 2) :]
        self._begin_turn(self._served.renderer.user_turn(content, _thinking(self._options), tail))

    def _flush(self) -> None:
        """Settles the newest word; the error then is about the text."""
        if self.is_text:
            self.kinds.add("text")
            self._push(self._text.flush())

    def _push(self, tokens: Sequence[tuple[int, int]]) -> None:
        limit = self._served.stream_model.max_context_tokens
        slides = self._options.context_overflow == pb.CONTEXT_OVERFLOW_SLIDE
        can_slide = slides and limit - self._answer_position >= MIN_WINDOW_TOKENS
        if self._num_positions + len(tokens) > limit and not can_slide:
            self.faults = {Code.OUT_OF_RANGE}
            return
        for token_id, end in tokens:
            if self._num_positions == limit:
                self.window_index += (len(self.ids) - self.window_index) // 2
                self._num_positions = self._answer_position + len(self.ids) - self.window_index
            self.ids.append(token_id)
            self._num_positions += 1
            if self.is_text:
                self.ends.append(end)

    def _begin_turn(self, turn: RenderedTurn) -> None:
        if len(turn.token_ids) > self.num_tokens_left:
            self.faults = {Code.OUT_OF_RANGE}
            return
        self._num_positions += len(turn.token_ids)
        self._answer_position = self._num_positions
        self.first_index = self.window_index = len(self.ids)
        self.num_turns += 1

    @property
    def _options(self) -> pb.StreamOpen:
        assert self.options is not None
        return self.options


def _rendered_prompt(served: Served, request: pb.StreamOpen) -> RenderedTurn:
    if request.HasField("templated"):
        ids = array("i", request.templated.token_ids)
        query_index = served.renderer.find_query_index(ids)
        assert query_index is not None
        return RenderedTurn(ids, query_index)
    messages = [Message(Role(message.role), message.content) for message in request.conversation.messages]
    return served.renderer.prompt(messages, _thinking(request))


def _thinking(options: pb.StreamOpen) -> Thinking:
    return Thinking.ON if options.thinking == pb.THINKING_ON else Thinking.OFF
