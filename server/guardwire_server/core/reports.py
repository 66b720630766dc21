"""What a stream tells its caller, put together from what the session knows."""

from array import array
from collections.abc import Sequence

from guardwire_server.core.events import EndReason, PromptVerdict, SummaryGiven, TokenVerdicts, UpdateMode
from guardwire_server.core.policy import Decision, DecisionReason, Policy
from guardwire_server.core.transcript import Transcript, Turn
from guardwire_server.core.verdict import Role, VerdictArrays


class VerdictReporter:
    """Chooses which token verdicts a caller is told. Owner: the session.

    Invariant: the reports of one stream hold rising indices, a rollback's aside, and none of those below `resume_from`
    that a broken stream has reported already.
    """

    def __init__(self, update_mode: UpdateMode, resume_from: int) -> None:
        self._on_change = update_mode is UpdateMode.ON_CHANGE
        self._resume_from = resume_from
        self._last: tuple[int, int, int] | None = None  # turn, risk level and category of the newest token
        self._restarts: set[int] = set()  # first tokens after rollbacks, until they are judged

    def restart(self, next_index: int) -> None:
        """Reports the next token whatever it is: the caller rolled back to `next_index`.

        The tokens pushed from there on are new ones, whose verdicts no caller has had on any stream.
        """
        # Tokens before `next_index` may still be without a verdict, so it is the index that is noted.
        if self._on_change:
            self._restarts = {index for index in self._restarts if index < next_index} | {next_index}
        self._resume_from = min(self._resume_from, next_index)

    @property
    def tells_all(self) -> bool:
        """Whether every verdict is told."""
        return not (self._on_change or self._resume_from)

    def report(self, transcript: Transcript, turn: Turn, start: int, verdicts: VerdictArrays) -> list[TokenVerdicts]:
        """What to tell of the verdicts on the tokens of `turn` from index `start` on."""
        if not self._on_change and start >= self._resume_from and len(verdicts):
            self._resume_from = 0  # all that a broken stream has reported has come again
            return [self._report(transcript, start, verdicts)]
        reports = []
        for run_start, run_stop in (
            self._changed_runs(turn, start, verdicts) if self._on_change else [(0, len(verdicts))]
        ):
            first, stop = max(start + run_start, self._resume_from), start + run_stop
            if first < stop:
                reports.append(self._report(transcript, first, verdicts.slice(first - start, stop - start)))
        return reports

    def _report(self, transcript: Transcript, start: int, verdicts: VerdictArrays) -> TokenVerdicts:
        stop = start + len(verdicts)
        marks = transcript.scaffold_marks[start:stop]
        return TokenVerdicts(start, verdicts, transcript.text_ends[start:stop], bytes(marks) if any(marks) else b"")

    def _changed_runs(self, turn: Turn, start: int, verdicts: VerdictArrays) -> list[tuple[int, int]]:
        """Runs (start, stop) of tokens whose turn, risk level or category differs from the token before.

        The first token after a rollback counts as different.
        """
        runs: list[tuple[int, int]] = []
        for offset, (level, category) in enumerate(zip(verdicts.risk_levels, verdicts.categories, strict=True)):
            present = (turn.number, level, category)
            if present != self._last or start + offset in self._restarts:
                self._restarts.discard(start + offset)
                if runs and runs[-1][1] == offset:
                    runs[-1] = (runs[-1][0], offset + 1)
                else:
                    runs.append((offset, offset + 1))
            self._last = present
        return runs


def join_reports(reports: Sequence[TokenVerdicts]) -> TokenVerdicts:
    """Reports on consecutive tokens as one."""
    text_end_offsets, marks = array(reports[0].text_end_offsets.typecode), bytearray()
    for report in reports:
        text_end_offsets.extend(report.text_end_offsets)
        marks += report.scaffold or bytes(len(report.verdicts))
    return TokenVerdicts(
        start_index=reports[0].start_index,
        verdicts=VerdictArrays.join([report.verdicts for report in reports]),
        text_end_offsets=text_end_offsets,
        scaffold=bytes(marks) if any(marks) else b"",
    )


def decide_unjudged(policy: Policy, transcript: Transcript, cause: str) -> Decision:
    """The decision about what was pushed and not judged: the policy's `on_error`, from the first such token on."""
    return Decision(
        action=policy.on_error,
        role=Role.ASSISTANT,
        turn=transcript.present.number,
        token_index=transcript.num_judged,
        cut_index=transcript.num_judged,
        risk_level=None,
        category=None,
        reason=DecisionReason.NOT_JUDGED,
        explanation=f"not judged: {cause}; policy '{policy.name}' says {policy.on_error.name}",
    )


def summarise(
    transcript: Transcript, reason: EndReason, time_to_prompt_verdict_s: float | None, duration_s: float
) -> SummaryGiven:
    """The summary of a stream that ends now."""
    present = transcript.present
    judged = [turn for turn in transcript.turns if turn.prompt_verdict]
    last_prompt = judged[-1] if judged else None
    has_answer = transcript.num_judged > present.first_index
    state = present.judge.state
    return SummaryGiven(
        end_reason=reason,
        prompt=PromptVerdict(last_prompt.number, last_prompt.prompt_verdict)
        if last_prompt and last_prompt.prompt_verdict
        else None,
        risk_level=state.risk_level if has_answer else None,
        category=state.category if has_answer else None,
        action=max(turn.action for turn in transcript.turns),
        num_tokens=transcript.num_pushed,
        num_tokens_by_level=transcript.count_by_level(),
        time_to_prompt_verdict_s=time_to_prompt_verdict_s,
        duration_s=duration_s,
    )
