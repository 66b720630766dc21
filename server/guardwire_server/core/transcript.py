"""What has been said on a stream, and how far it has been judged.

Two countings meet here. A *position* counts every token of the engine's sequence: prompts, scaffold, answers. An
*index* counts only the answer tokens that the caller pushed. A turn knows both of its answer's first token, so they
translate into each other.

Rollback and judging cross on their way, because the engine runs beside the event loop. Every truncation therefore
raises the epoch, and a result carries the epoch it was planned in: of an older epoch's result, exactly the positions
that no later truncation took back still count.
"""

from array import array
from dataclasses import dataclass, field

from guardwire_server.core.events import RenderedTurn
from guardwire_server.core.policy import Action, AnswerJudge, Decision, Policy
from guardwire_server.core.verdict import RiskLevel, Verdict


@dataclass(slots=True)
class Turn:
    """A user message and the answer to it.

    `window_index` is the index of the answer's token at `answer_position`: its first one, until the context slides.
    """

    number: int
    query_position: int
    answer_position: int
    judge: AnswerJudge
    first_index: int
    window_index: int = field(init=False)
    prompt_verdict: Verdict | None = None
    prompt_decision: Decision | None = None

    def __post_init__(self) -> None:
        self.window_index = self.first_index

    @property
    def action(self) -> Action:
        """The highest action in force for the prompt or the answer."""
        prompt_action = self.prompt_decision.action if self.prompt_decision else Action.ALLOW
        return max(prompt_action, self.judge.action)


class Transcript:
    """Owner: the session. Invariants: num_judged <= num_pushed; turns are in order; the last one is the present one."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.num_positions = 0
        self.num_judged = 0
        self.num_prompts_pending = 0
        self.epoch = 0
        self.pushed_ids = array("i")
        self.scaffold_marks = bytearray()  # one per pushed token
        self.text_ends = array("Q")  # end offset in bytes of each pushed token; empty on token streams
        self._truncations: list[tuple[int, int]] = []  # (epoch that it began, positions kept)

    @property
    def num_pushed(self) -> int:
        """Answer tokens pushed and not rolled back."""
        return len(self.pushed_ids)

    @property
    def present(self) -> Turn:
        """The turn whose answer is being written."""
        return self.turns[-1]

    @property
    def num_pending(self) -> int:
        """Verdicts that are still to come, prompts included."""
        return len(self.pushed_ids) - self.num_judged + self.num_prompts_pending

    @property
    def previous_id(self) -> int | None:
        """The newest token of the present answer, None at its beginning."""
        return self.pushed_ids[-1] if len(self.pushed_ids) > self.turns[-1].first_index else None

    @property
    def answer_tail(self) -> "array[int]":
        """The newest two tokens of the present answer, or fewer."""
        return self.pushed_ids[max(self.present.first_index, self.num_pushed - 2) :]

    def position_of(self, index: int) -> int:
        """The position of a token of the present answer."""
        return self.present.answer_position + index - self.present.window_index

    def turn_at(self, position: int) -> Turn:
        """The turn whose answer the token at `position` belongs to."""
        for turn in reversed(self.turns):
            if turn.answer_position <= position:
                return turn
        raise ValueError(f"no answer holds position {position}")

    def begin_turn(self, rendered: RenderedTurn, policy: Policy) -> None:
        """Appends a user message, and what stands around it, up to where its answer begins."""
        start, number, first_index = self.num_positions, len(self.turns), self.num_pushed
        self.num_prompts_pending += 1
        self.num_positions += len(rendered.token_ids)
        self.turns.append(
            Turn(
                number=number,
                query_position=start + rendered.query_index,
                answer_position=self.num_positions,
                judge=AnswerJudge(policy, turn=number, first_index=first_index),
                first_index=first_index,
            )
        )

    def set_prompt_verdict(self, turn: Turn, verdict: Verdict) -> None:
        """Takes the verdict on a turn's prompt, once."""
        turn.prompt_verdict = verdict
        self.num_prompts_pending -= 1

    def push(self, ids: "array[int]", scaffold_marks: bytes) -> None:
        """Appends tokens to the present answer."""
        self.pushed_ids.extend(ids)
        self.scaffold_marks += scaffold_marks
        self.num_positions += len(ids)

    def push_text_token(self, token_id: int) -> None:
        """Appends one token that is no scaffold."""
        self.pushed_ids.append(token_id)
        self.scaffold_marks.append(0)
        self.num_positions += 1

    def truncate(self, num_tokens_kept: int) -> int:
        """Forgets the present answer's tokens from that index on; returns how many positions are left."""
        position = self.position_of(num_tokens_kept)
        self.num_positions = position
        self.num_judged = min(self.num_judged, num_tokens_kept)
        self.present.judge.truncate(num_tokens_kept)
        del self.pushed_ids[num_tokens_kept:]
        del self.scaffold_marks[num_tokens_kept:]
        del self.text_ends[num_tokens_kept:]
        self.epoch += 1
        self._truncations.append((self.epoch, position))
        return position

    def slide(self) -> "array[int]":
        """Takes the older half of the present answer out of the context; returns the ids that stay in it.

        Indices go on, positions change. Only when everything is judged, so that no result is on its way.
        """
        turn = self.present
        turn.window_index += (self.num_pushed - turn.window_index) // 2
        self.num_positions = self.position_of(self.num_pushed)
        self.epoch += 1
        return self.pushed_ids[turn.window_index :]

    def num_valid(self, epoch: int, position: int, num_tokens: int) -> int:
        """How many of `num_tokens` results from `position` on, planned in `epoch`, are about tokens that still exist.

        Results come in the order of their epochs, so truncations up to `epoch` are forgotten here.
        """
        if not self._truncations:
            return num_tokens
        self._truncations = [entry for entry in self._truncations if entry[0] > epoch]
        limit = min((kept for _, kept in self._truncations), default=position + num_tokens)
        return max(0, min(num_tokens, limit - position))

    def pass_safe(self, position: int) -> int | None:
        """Takes a SAFE verdict on the token at `position`; returns the token's index.

        None, and nothing is done, where that takes a closer look: the token is scaffold, belongs to an earlier answer
        or has an offset in a text, or something was taken back.
        """
        turn, index = self.turns[-1], self.num_judged
        if index != turn.window_index + position - turn.answer_position or position < turn.answer_position:
            return None
        if self._truncations or self.text_ends or self.scaffold_marks[index]:
            return None
        turn.judge.pass_safe()
        self.num_judged = index + 1
        return index

    def holds(self, start: int, ids: "array[int]") -> bool:
        """Whether exactly these tokens were pushed from index `start` on."""
        return start < self.num_pushed and self.pushed_ids[start : start + len(ids)] == ids

    def text_offset(self, index: int) -> int:
        """Where the token at `index` begins in the pushed text, in bytes."""
        return self.text_ends[index - 1] if index else 0

    def count_by_level(self) -> dict[RiskLevel, int]:
        """Judged tokens by the level they counted at, scaffold aside."""
        return {level: sum(turn.judge.count(level) for turn in self.turns) for level in RiskLevel}
