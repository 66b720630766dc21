"""The vocabulary of a stream: what comes in from the caller, the engine and the clock, and what goes out to them.

All are immutable; those that every token makes are tuples, which are made fastest. Token ids are `array("i")`, and
whoever hands an array over does not change it any more.
"""

from array import array
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from guardwire_server.core.errors import RequestError, WrongState
from guardwire_server.core.policy import Action, Decision, Policy
from guardwire_server.core.verdict import Category, Message, RiskLevel, Verdict, VerdictArrays

_NO_OFFSETS = array("Q")  # shared by all that have none


class Thinking(Enum):
    """Whether the language model writes its reasoning before the answer."""

    OFF = "off"
    ON = "on"


class InputKind(Enum):
    """What a stream is fed with."""

    TOKENS = "tokens"
    TEXT = "text"


class ContextOverflow(Enum):
    """What happens when an answer outgrows the context: the stream fails, or the answer's older half is forgotten."""

    FAIL = "fail"
    SLIDE = "slide"


class UpdateMode(Enum):
    """Which verdicts a stream sends."""

    EVERY_TOKEN = "every_token"
    ON_CHANGE = "on_change"


class EndReason(Enum):
    """Why a stream ended in good order."""

    FINISHED = "finished"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """Tokens up to where the answer begins; the user message closes at `query_index` among them."""

    token_ids: "array[int]"
    query_index: int


# --- from the caller ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenRequested:
    """The first message: `prompt` is the conversation, the same already rendered, or a caller's ids of the template."""

    prompt: "tuple[Message, ...] | RenderedTurn | array[int]"
    policy: Policy
    thinking: Thinking = Thinking.OFF
    input_kind: InputKind = InputKind.TOKENS
    update_mode: UpdateMode = UpdateMode.EVERY_TOKEN
    end_on_block: bool = False
    observe_only: bool = False
    resume_from: int = 0
    context_overflow: ContextOverflow = ContextOverflow.FAIL

    @property
    def is_enforced(self) -> bool:
        """Whether anything follows from decisions."""
        return not (self.observe_only or self.policy.observe_only)

    def require_input(self, kind: InputKind, field: str) -> None:
        """Raises WrongState unless the stream was opened for this kind of input."""
        if self.input_kind is not kind:
            raise WrongState("WRONG_INPUT_KIND", field, f"the stream was opened for {self.input_kind.value}")


class TokensPushed(NamedTuple):
    """The next tokens of the answer; `start_index` is what the caller says their first index is."""

    token_ids: "array[int]"
    start_index: int | None = None


@dataclass(frozen=True, slots=True)
class TextPushed:
    """The next piece of the answer's text; `flush` settles the held back word too."""

    text: str
    flush: bool = False


@dataclass(frozen=True, slots=True)
class RollbackRequested:
    """Forget the tokens from index `num_tokens_kept` on."""

    num_tokens_kept: int


@dataclass(frozen=True, slots=True)
class UserTurnAdded:
    """The user's next message, as text or as ids."""

    content: "str | array[int]"


@dataclass(frozen=True, slots=True)
class FinishRequested:
    """Nothing more comes; the summary is asked for."""


@dataclass(frozen=True, slots=True)
class InputRefused:
    """A message that no stream could accept."""

    error: RequestError


@dataclass(frozen=True, slots=True)
class InputEnded:
    """The caller's side of the call is closed."""


# --- from the engine, the clock and the server -------------------------------------------------------------------


class TokensJudged(NamedTuple):
    """The verdicts on the tokens at `position` and after, as the sequence was at `epoch`.

    Positions count all tokens of the sequence, prompt and scaffold included.
    """

    epoch: int
    position: int
    verdicts: VerdictArrays


@dataclass(frozen=True, slots=True)
class PromptJudged:
    """The verdict on the user message that closes at `position`."""

    epoch: int
    position: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SequenceFailed:
    """The engine gave the sequence up."""

    error: RequestError


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time for the session to look at its deadlines."""


@dataclass(frozen=True, slots=True)
class DrainAnnounced:
    """The server stops in `timeout_s` seconds."""

    timeout_s: float


# --- to the engine -----------------------------------------------------------------------------------------------


class ExtendSequence(NamedTuple):
    """Append tokens, with one step_plan.Read code each."""

    ids: "array[int]"
    reads: bytes


@dataclass(frozen=True, slots=True)
class TruncateSequence:
    """Keep the first `num_tokens` tokens; what is judged from now on carries `epoch`."""

    num_tokens: int
    epoch: int


# --- to the caller -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The stream is open, under the policy of that name."""

    policy_name: str
    num_prompt_tokens: int
    num_tokens_left: int


@dataclass(frozen=True, slots=True)
class PromptVerdict:
    """The verdict on user message `turn`."""

    turn: int
    verdict: Verdict


class TokenVerdicts(NamedTuple):
    """The verdicts on the tokens from index `start_index` on.

    `text_end_offsets` is empty on token streams; `scaffold` holds one 0 or 1 a token, or is empty when all are 0.
    """

    start_index: int
    verdicts: VerdictArrays
    text_end_offsets: "array[int]" = _NO_OFFSETS
    scaffold: bytes = b""


@dataclass(frozen=True, slots=True)
class DecisionTaken:
    """The policy's decision rose."""

    decision: Decision
    cut_text_offset: int | None
    enforced: bool


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The rollback is done; `action` is in force for the present answer now."""

    num_tokens_kept: int
    action: Action


@dataclass(frozen=True, slots=True)
class DrainingNoted:
    """The server stops in `timeout_s` seconds."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class SummaryGiven:
    """The stream's end in good order. Token counts leave scaffold out; `risk_level` is None without any token."""

    end_reason: EndReason
    prompt: PromptVerdict | None
    risk_level: RiskLevel | None
    category: Category | None
    action: Action
    num_tokens: int
    num_tokens_by_level: dict[RiskLevel, int]
    time_to_prompt_verdict_s: float | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The call is over: in good order, or with `error`. Nothing follows."""

    error: RequestError | None


CallerEvent = (
    OpenRequested
    | TokensPushed
    | TextPushed
    | RollbackRequested
    | UserTurnAdded
    | FinishRequested
    | InputRefused
    | InputEnded
)
EngineEvent = TokensJudged | PromptJudged | SequenceFailed
Event = CallerEvent | EngineEvent | TimePassed | DrainAnnounced
EngineCommand = ExtendSequence | TruncateSequence
Update = StreamOpened | PromptVerdict | TokenVerdicts | DecisionTaken | RolledBack | DrainingNoted | SummaryGiven
Output = EngineCommand | Update | StreamEnded
