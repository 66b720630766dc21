"""What one moderated stream says and hears, without I/O.

Theory of operation: the caller's verbs become requests, in the order in which they must be written; every response that
was read goes through `receive`. On the way the protocol keeps count of the pushed tokens, so that a push states its
start index and the server notices a loss (what a shared call packs does not), and it keeps the decision in force:

* A decision belongs to one user message and the answer to it; `user_turn` begins anew.
* A rollback takes back, at once, every decision that fell at a token it forgets. Decisions about such tokens that were
  still under way when the rollback was sent are recognised by their token index until `RolledBack` confirms it.

A request that would only break the stream is refused here, and the stream goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import grpc

from guardwire.conversation import Messages
from guardwire.convert import requests, responses
from guardwire.convert.requests import Request, SingleToken
from guardwire.enums import InputKind, Role
from guardwire.errors import InvalidRequest, broken_contract, invalid_request
from guardwire.options import ModerateOptions
from guardwire.request_size import check_size
from guardwire.results import Decision, RolledBack, StreamOpened, Summary, TokenVerdicts, Update
from guardwire.v1 import moderation_pb2 as pb

Response = pb.ModerateStreamResponse | responses.PackedVerdict
"""What a call of its own brings, or what one that many streams share packs for them."""


class StreamProtocol:
    """The state of one stream as its caller knows it.

    Owner: the stream object that does the I/O; where threads share that one, it holds a lock around every call.
    """

    def __init__(self, messages: Messages | None, options: ModerateOptions) -> None:
        self.open = requests.open_request(messages, options)
        check_size(self.open, "open")
        self.opened: StreamOpened | None = None
        self.summary: Summary | None = None
        self.num_tokens = 0
        self.num_verdicts = 0
        self._num_forgotten = 0
        self._input = options.input
        self._answer_start = 0
        self._finished = False
        self._turn = 0
        self._decisions: list[Decision] = []
        self._rollbacks: deque[int] = deque()

    @property
    def num_pushed(self) -> int | None:
        """Tokens pushed, with those rolled back; None on text streams, where the server counts."""
        return self.num_tokens + self._num_forgotten if self._input is InputKind.TOKENS else None

    @property
    def decision(self) -> Decision | None:
        """The highest decision in force for the last user message or the answer to it."""
        return max(self._decisions, key=lambda decision: decision.action, default=None)

    @property
    def blocked(self) -> bool:
        """True while a BLOCK that is not only observed is in force."""
        return any(decision.blocked for decision in self._decisions)

    def push(self, token_ids: Iterable[int]) -> list[Request]:
        """The requests that push these tokens: several when the server's limit on one message asks for it."""
        self._check_open(InputKind.TOKENS, "tokens")
        ids = requests.token_ids(token_ids, "tokens.token_ids")
        limit = (self.opened.limits.max_tokens_per_message if self.opened else 0) or len(ids) or 1
        chunks = [
            _sendable(requests.push_tokens(ids[start : start + limit], self.num_tokens + start), "tokens")
            for start in range(0, len(ids), limit)
        ]
        self.num_tokens += len(ids)
        return chunks

    def push_text(self, text: str, flush: bool) -> list[Request]:
        """The request that pushes this text."""
        self._check_open(InputKind.TEXT, "text")
        return [_sendable(requests.push_text(text, flush), "text")]

    def rollback(self, num_tokens_kept: int) -> list[Request]:
        """The request that forgets the newest tokens."""
        self._check_open(self._input, "rollback")
        if self._input is InputKind.TOKENS and not self._answer_start <= num_tokens_kept <= self.num_tokens:
            raise invalid_request(
                f"rollback may keep {self._answer_start} to {self.num_tokens} tokens, not {num_tokens_kept}",
                "rollback.num_tokens_kept",
                grpc.StatusCode.OUT_OF_RANGE,
            )
        num_forgotten = max(0, self.num_tokens - num_tokens_kept)
        self.num_tokens -= num_forgotten
        self._num_forgotten += num_forgotten
        self._decisions = [decision for decision in self._decisions if not _is_forgotten(decision, num_tokens_kept)]
        self._rollbacks.append(num_tokens_kept)
        return [requests.rollback(num_tokens_kept)]

    def user_turn(self, content: str | Iterable[int]) -> list[Request]:
        """The request that closes the answer and adds the user's message."""
        self._check_open(self._input, "user_turn")
        request = _sendable(requests.user_turn(content), "user_turn")
        self._answer_start = self.num_tokens
        self._turn += 1
        self._decisions = []
        return [request]

    def finish(self) -> list[Request]:
        """The request for the summary; the last one."""
        self._check_open(self._input, "finish")
        self._finished = True
        return [requests.finish()]

    def receive(self, response: Response) -> Update | None:
        """Takes a response; gives what the caller is to see of it, if anything.

        Raises:
            ServerFault: The contract does not allow it. The stream is of no use any more.
        """
        update: Update | None
        if isinstance(response, responses.PackedVerdict):
            update = responses.packed_verdict(response)
        elif response.HasField("opened"):
            self.opened = responses.opened(response.opened)
            return None
        else:
            update = responses.update(response)
        if update is not None and self.opened is None:
            raise broken_contract(f"the server's first message on a stream is {type(update).__name__}")
        match update:
            case TokenVerdicts():
                self.num_verdicts += len(update.risk_levels)
            case Decision():
                self._decide(update)
            case RolledBack():
                if self._rollbacks:
                    self._rollbacks.popleft()
            case Summary():
                self.summary = update
        return update

    def _decide(self, decision: Decision) -> None:
        if decision.turn < self._turn or any(_is_forgotten(decision, kept) for kept in self._rollbacks):
            return
        self._decisions.append(decision)

    def _check_open(self, expected: InputKind, field: str) -> None:
        if self._finished:
            raise _misuse("the stream is finished: nothing may follow", field)
        if self._input is not expected:
            raise _misuse(f"the stream was opened for {self._input.name.lower()}, not {field}", field)


def _is_forgotten(decision: Decision, num_tokens_kept: int) -> bool:
    return decision.role is Role.ASSISTANT and decision.token_index >= num_tokens_kept


def _sendable(request: Request, field: str) -> Request:
    """The request; raises InvalidRequest when it is larger than a server takes, before anything counts as sent."""
    if not isinstance(request, SingleToken):
        check_size(request, field)
    return request


def _misuse(message: str, field: str) -> InvalidRequest:
    return invalid_request(message, field, grpc.StatusCode.FAILED_PRECONDITION)
