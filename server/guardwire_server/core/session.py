"""One stream, without I/O and without a clock: events in, outputs out.

Theory of operation. `TRANSITIONS` says in which state which event is allowed and what handles it; an event of the
caller that is missing there is an error of the caller. Outputs are commands to the engine, updates for the caller, and
one `StreamEnded`, after which nothing comes.

A stream that ends for a reason of its own (finish, a bad message, a timeout) first waits for the verdicts of all that
was pushed before, so that no pushed token is left without its verdict: that is the state CLOSING. Only the loss of the
caller, of the engine, or of patience (the maximum lifetime) ends it at once.

Messages that come while the answer waits for the context to slide (core.answer_input) wait behind it.
"""

from array import array
from collections import deque

from guardwire_server.core import events as ev
from guardwire_server.core.answer_input import AnswerInput
from guardwire_server.core.errors import Abandoned, OutOfRange, RequestError, WrongState
from guardwire_server.core.policy import Action, Decision, decide_prompt
from guardwire_server.core.ports import SessionLimits, TurnRenderer, render_prompt
from guardwire_server.core.reports import VerdictReporter, decide_unjudged, summarise
from guardwire_server.core.step_plan import Read
from guardwire_server.core.transcript import Transcript
from guardwire_server.core.transitions import HANDLERS, State, wrong_state


class Session:
    """One stream. Owner and thread: the session manager, on the event loop.

    Invariants: outputs come in the order in which they must be sent; after `StreamEnded` there are none. `tells_all` is
    whether every token's verdict is told; `_takes_ids` and `_tells_safe`, whether the short ways are open.
    """

    def __init__(self, limits: SessionLimits, renderer: TurnRenderer, now_s: float) -> None:
        """A stream that awaits its `open`; `now_s` is the time, in seconds of any steady clock."""
        self._limits, self._renderer = limits, renderer
        self._state = State.AWAITING_OPEN
        self._options: ev.OpenRequested
        self._transcript = Transcript()
        self._input = AnswerInput(limits, renderer, self._transcript)
        self._opened_s = self._idle_since_s = self._now_s = now_s
        self._prompt_verdict_s: float | None = None
        self._reporter: VerdictReporter
        self._closing_error: RequestError | None = None
        self._drain: ev.DrainingNoted | None = None
        self._waiting: deque[ev.CallerEvent] = deque()  # messages behind tokens that wait for the context to slide
        self._takes_ids = self._tells_safe = self.tells_all = False  # settled anew by every event

    @property
    def state(self) -> State:
        """Where the stream stands."""
        return self._state

    @property
    def wants_input(self) -> bool:
        """Whether the caller's next message should be taken now."""
        if self._state is State.CLOSING:
            return self._closing_error is None
        return not self._input.is_waiting and self.has_room

    @property
    def has_room(self) -> bool:
        """Whether fewer tokens than the limit wait for their verdicts."""
        return self._transcript.num_pending < self._limits.max_pending_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens pushed and not rolled back, those without a verdict included."""
        return self._transcript.num_pushed

    def handle(self, event: ev.Event, now_s: float) -> list[ev.Output]:
        """Takes one event; returns what follows from it."""
        self._now_s = now_s
        outputs: list[ev.Output] = []
        if self._input.is_waiting and isinstance(event, ev.CallerEvent):
            self._waiting.append(event)
        else:
            self._dispatch(event, outputs)
        is_streaming = self._state is State.STREAMING
        self._takes_ids = is_streaming and self._options.input_kind is ev.InputKind.TOKENS
        self.tells_all = is_streaming and self._reporter.tells_all
        self._tells_safe = self.tells_all and not self._input.is_waiting
        return outputs

    def push_token(self, token_id: int, now_s: float) -> bool:
        """The short way of one pushed token: True if it was taken and only an extension by it follows.

        Otherwise nothing was done, and it must come as an event.
        """
        if not self._takes_ids or not self._input.push_id(token_id):
            return False
        self._now_s = self._idle_since_s = now_s
        return True

    def take_safe(self, position: int, now_s: float) -> int | None:
        """The short way of one token judged, as SAFE: its index, if only a report of that verdict follows.

        None if nothing was done; then it must come as an event.
        """
        index = self._transcript.pass_safe(position) if self._tells_safe else None
        if index is not None:
            self._now_s = self._idle_since_s = now_s
        return index

    def _dispatch(self, event: ev.Event, outputs: list[ev.Output]) -> None:
        if self._state is State.ENDED:
            return
        handler = HANDLERS[self._state.value].get(type(event))
        try:
            if handler is None:
                raise wrong_state(self._state, event)
            getattr(self, handler)(event, outputs)
        except RequestError as error:
            self._close(error, outputs)

    # --- the caller's messages -----------------------------------------------------------------------------------

    def _open(self, event: ev.OpenRequested, outputs: list[ev.Output]) -> None:
        self._options = event
        self._input.slides = event.context_overflow is ev.ContextOverflow.SLIDE
        self._reporter = VerdictReporter(event.update_mode, event.resume_from)
        self._opened_s = self._idle_since_s = self._now_s
        field = "open.templated.token_ids" if isinstance(event.prompt, array) else "open.conversation"
        turn = render_prompt(self._renderer, event.prompt, event.thinking)
        extension = self._begin_turn(turn, field)
        num_prompt_tokens = len(turn.token_ids)
        outputs.append(
            ev.StreamOpened(event.policy.name, num_prompt_tokens, self._limits.max_context_tokens - num_prompt_tokens)
        )
        if self._drain:
            outputs.append(self._drain)
        outputs.append(extension)
        self._state = State.STREAMING

    def _push_tokens(self, event: ev.TokensPushed, outputs: list[ev.Output]) -> None:
        self._options.require_input(ev.InputKind.TOKENS, "tokens")
        start, num_pushed = event.start_index, self._transcript.num_pushed
        if start is None or start == num_pushed:
            self._idle_since_s = self._now_s
            outputs += self._input.push_ids(event.token_ids, "tokens.token_ids")
        elif self._options.resume_from and self._transcript.holds(start, event.token_ids):
            self._idle_since_s = self._now_s  # an exact repeat
        else:
            kind = "a gap" if start > num_pushed else "an overlap"
            message = f"{start} is {kind}: {num_pushed} was expected"
            raise OutOfRange("START_INDEX_MISMATCH", "tokens.start_index", message)

    def _push_text(self, event: ev.TextPushed, outputs: list[ev.Output]) -> None:
        self._options.require_input(ev.InputKind.TEXT, "text")
        self._idle_since_s = self._now_s
        outputs += self._input.push_text(event.text, flush=event.flush)

    def _roll_back(self, event: ev.RollbackRequested, outputs: list[ev.Output]) -> None:
        self._idle_since_s = self._now_s
        kept = event.num_tokens_kept
        outputs.append(self._input.roll_back(kept))
        self._reporter.restart(kept)
        outputs.append(ev.RolledBack(kept, self._transcript.present.judge.action))

    def _add_user_turn(self, event: ev.UserTurnAdded, outputs: list[ev.Output]) -> None:
        outputs += self._input.flush_text()
        if self._input.is_waiting:
            self._waiting.appendleft(event)  # the answer's last words come first
            return
        field = "user_turn.tokens.token_ids" if isinstance(event.content, array) else "user_turn.content"
        turn = self._renderer.user_turn(event.content, self._options.thinking, self._transcript.answer_tail)
        outputs.append(self._begin_turn(turn, field))

    def _finish(self, event: ev.FinishRequested, outputs: list[ev.Output]) -> None:
        outputs += self._input.flush_text()
        self._state = State.CLOSING
        self._end_if_judged(outputs)

    def _refuse(self, event: ev.InputRefused, outputs: list[ev.Output]) -> None:
        raise event.error

    def _end_unopened(self, event: ev.InputEnded, outputs: list[ev.Output]) -> None:
        raise WrongState("OPEN_REQUIRED", "open", "the stream ended before it was opened")

    def _abandon(self, event: ev.InputEnded, outputs: list[ev.Output]) -> None:
        self._end(Abandoned("ABANDONED", "the caller's input ended without `finish`"), outputs)

    # --- the results of the engine, the clock and the server -------------------------------------------------------

    def _take_prompt_verdict(self, event: ev.PromptJudged, outputs: list[ev.Output]) -> None:
        turn = next((turn for turn in self._transcript.turns if turn.query_position == event.position), None)
        if turn is None or turn.prompt_verdict is not None:
            return
        self._idle_since_s = self._now_s  # the caller may have waited for this
        if self._prompt_verdict_s is None:
            self._prompt_verdict_s = self._now_s - self._opened_s
        self._transcript.set_prompt_verdict(turn, event.verdict)
        outputs.append(ev.PromptVerdict(turn.number, event.verdict))
        decision = decide_prompt(self._options.policy, event.verdict, turn=turn.number, token_index=turn.first_index)
        if decision.action > Action.ALLOW:
            turn.prompt_decision = decision
            self._announce(decision, outputs)
        self._slide(outputs)
        self._end_if_judged(outputs)

    def _take_verdicts(self, event: ev.TokensJudged, outputs: list[ev.Output]) -> None:
        transcript = self._transcript
        num_tokens = transcript.num_valid(event.epoch, event.position, len(event.verdicts))
        if not num_tokens:
            return
        turn = transcript.turn_at(event.position)
        start = turn.window_index + event.position - turn.answer_position
        if start != transcript.num_judged:
            raise AssertionError(f"verdicts from {start} on, but {transcript.num_judged} tokens are judged")
        verdicts, stop = event.verdicts.slice(0, num_tokens), start + num_tokens
        decisions = turn.judge.judge_run(verdicts, transcript.scaffold_marks[start:stop])
        transcript.num_judged = stop
        self._idle_since_s = self._now_s  # the caller may have waited for this
        outputs += self._reporter.report(transcript, turn, start, verdicts)
        for decision in decisions:
            self._announce(decision, outputs)
        if self._input.is_waiting or self._waiting:
            self._slide(outputs)
        if self._state is State.CLOSING:
            self._end_if_judged(outputs)

    def _fail(self, event: ev.SequenceFailed, outputs: list[ev.Output]) -> None:
        self._end(event.error, outputs)

    def _check_deadlines(self, event: ev.TimePassed, outputs: list[ev.Output]) -> None:
        waits_for_caller = self._state is not State.CLOSING and not self._transcript.num_pending
        idle_s = self._now_s - self._idle_since_s if waits_for_caller else 0.0
        if error := self._limits.timeout(age_s=self._now_s - self._opened_s, idle_s=idle_s):
            self._end(error, outputs)

    def _announce_drain(self, event: ev.DrainAnnounced, outputs: list[ev.Output]) -> None:
        outputs.append(ev.DrainingNoted(event.timeout_s))

    def _note_drain(self, event: ev.DrainAnnounced, outputs: list[ev.Output]) -> None:
        self._drain = ev.DrainingNoted(event.timeout_s)  # `opened` must come first

    def _pass_over(self, event: ev.Event, outputs: list[ev.Output]) -> None:
        """Nothing follows from the event here."""

    def _begin_turn(self, rendered: ev.RenderedTurn, field: str) -> ev.ExtendSequence:
        self._input.require_room(len(rendered.token_ids), field)
        self._idle_since_s = self._now_s
        self._transcript.begin_turn(rendered, self._options.policy)
        reads = bytearray(len(rendered.token_ids))
        reads[rendered.query_index] = Read.QUERY
        return ev.ExtendSequence(rendered.token_ids, bytes(reads))

    def _slide(self, outputs: list[ev.Output]) -> None:
        """Goes on with what waits for the context to slide, once everything before is judged."""
        if self._state is State.ENDED:
            return
        outputs += self._input.slide()
        while self._waiting and not self._input.is_waiting:
            self._dispatch(self._waiting.popleft(), outputs)

    def _announce(self, decision: Decision, outputs: list[ev.Output]) -> None:
        if self._state is State.ENDED:
            return
        self._tell(decision, outputs)
        if decision.action is Action.BLOCK and self._options.is_enforced and self._options.end_on_block:
            self._summarise(ev.EndReason.BLOCKED, outputs)

    def _tell(self, decision: Decision, outputs: list[ev.Output]) -> None:
        is_text = self._options.input_kind is ev.InputKind.TEXT
        cut_text_offset = self._transcript.text_offset(decision.cut_index) if is_text else None
        outputs.append(ev.DecisionTaken(decision, cut_text_offset, self._options.is_enforced))

    def _close(self, error: RequestError, outputs: list[ev.Output]) -> None:
        """Ends the stream with an error once everything pushed before is judged; the first error stands."""
        self._closing_error = self._closing_error or error
        if self._state is State.STREAMING:
            self._state = State.CLOSING
        if self._state is State.AWAITING_OPEN:
            self._end(self._closing_error, outputs)
        else:
            self._end_if_judged(outputs)

    def _end_if_judged(self, outputs: list[ev.Output]) -> None:
        if self._state is not State.CLOSING or self._transcript.num_pending:
            return
        if self._closing_error:
            self._end(self._closing_error, outputs)
        else:
            self._summarise(ev.EndReason.FINISHED, outputs)

    def _summarise(self, reason: ev.EndReason, outputs: list[ev.Output]) -> None:
        outputs.append(summarise(self._transcript, reason, self._prompt_verdict_s, self._now_s - self._opened_s))
        self._end(None, outputs)

    def _end(self, error: RequestError | None, outputs: list[ev.Output]) -> None:
        """Ends the stream; what was pushed and could not be judged gets the policy's `on_error`."""
        if error and not isinstance(error, Abandoned) and self._transcript.num_pending:
            decision = decide_unjudged(self._options.policy, self._transcript, error.message)
            if decision.action > self._transcript.present.action:
                self._tell(decision, outputs)
        self._state = State.ENDED
        outputs.append(ev.StreamEnded(error))
