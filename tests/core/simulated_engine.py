"""A session with an engine beside it that takes its commands and delivers its results as late as a test wants."""

from array import array
from collections import deque

from guardwire_server.core import events as ev
from guardwire_server.core.ports import SessionLimits
from guardwire_server.core.session import Session
from guardwire_server.core.step_plan import Read
from tests.core.fakes import FakeRenderer, model_verdict, packed

LIMITS = SessionLimits(max_context_tokens=200, max_pending_tokens=16, idle_timeout_s=10.0, max_lifetime_s=100.0)


class SimulatedEngine:
    """One sequence. Commands wait in an inbox until they are applied, results in an outbox until they are delivered."""

    def __init__(self) -> None:
        self.inbox: deque[ev.EngineCommand] = deque()
        self.outbox: deque[ev.EngineEvent] = deque()
        self._ids = array("i")
        self._reads = bytearray()
        self._num_judged = 0
        self._epoch = 0

    @property
    def num_pending(self) -> int:
        """Tokens that it knows of and has not judged."""
        return len(self._ids) - self._num_judged

    def apply(self) -> None:
        """Takes the oldest command."""
        command = self.inbox.popleft()
        if isinstance(command, ev.ExtendSequence):
            assert len(command.ids) == len(command.reads)
            self._ids.extend(command.ids)
            self._reads += command.reads
        else:
            assert command.epoch > self._epoch
            self._epoch = command.epoch
            del self._ids[command.num_tokens :]
            del self._reads[command.num_tokens :]
            self._num_judged = min(self._num_judged, command.num_tokens)

    def judge(self, num_tokens: int) -> None:
        """One step: judges the next tokens."""
        stop = min(self._num_judged + num_tokens, len(self._ids))
        run: list[int] = []
        for position in range(self._num_judged, stop):
            read = self._reads[position]
            if read == Read.RESPONSE:
                run.append(position)
            if run and (read != Read.RESPONSE or position == stop - 1):
                verdicts = packed(model_verdict(self._ids[: at + 1]) for at in run)
                self.outbox.append(ev.TokensJudged(self._epoch, run[0], verdicts))
                run = []
            if read == Read.QUERY:
                verdict = model_verdict(self._ids[: position + 1], is_query=True)
                self.outbox.append(ev.PromptJudged(self._epoch, position, verdict))
        self._num_judged = stop


class Stream:
    """A session and its engine; `now_s` is the clock, and the updates are kept.

    With `short_ways`, single tokens and SAFE verdicts take the session's short ways wherever it lets them.
    """

    def __init__(self, limits: SessionLimits = LIMITS, *, short_ways: bool = False) -> None:
        self._short_ways = short_ways
        self.num_short_ways = 0
        self.now_s = 0.0
        self.session = Session(limits, FakeRenderer(), self.now_s)
        self.engine = SimulatedEngine()
        self.updates: list[ev.Update] = []
        self.ends: list[ev.StreamEnded] = []

    def send(self, *events: ev.Event) -> list[ev.Output]:
        """Hands events to the session and what follows to where it belongs; returns it too."""
        outputs = [output for event in events for output in self._handle(event)]
        for output in outputs:
            assert not self.ends, "nothing follows the end"
            match output:
                case ev.ExtendSequence() | ev.TruncateSequence():
                    self.engine.inbox.append(output)
                case ev.StreamEnded():
                    self.ends.append(output)
                case _:
                    self.updates.append(output)
        return outputs

    def _handle(self, event: ev.Event) -> list[ev.Output]:
        output = self._handle_shortly(event) if self._short_ways else None
        if output is None:
            return self.session.handle(event, self.now_s)
        self.num_short_ways += 1
        return [output]

    def _handle_shortly(self, event: ev.Event) -> ev.Output | None:
        if isinstance(event, ev.TokensJudged):
            if event.verdicts.safe_marks() != [True]:
                return None
            index = self.session.take_safe(event.position, self.now_s)
            return None if index is None else ev.TokenVerdicts(index, event.verdicts)
        token_id = single_token(event)
        if token_id is None or not self.session.push_token(token_id, self.now_s):
            return None
        return ev.ExtendSequence(array("i", (token_id,)), bytes((Read.RESPONSE,)))

    def deliver(self) -> None:
        """Hands the engine's oldest result to the session."""
        self.send(self.engine.outbox.popleft())

    def settle(self) -> None:
        """Lets the engine do all it has to do."""
        while self.engine.inbox:
            self.engine.apply()
        self.engine.judge(self.engine.num_pending)
        while self.engine.outbox:
            self.deliver()

    def told(self, kind: type[ev.Update]) -> list[ev.Update]:
        """The updates of one kind."""
        return [update for update in self.updates if isinstance(update, kind)]

    @property
    def error(self) -> Exception | None:
        """What the stream ended with."""
        (end,) = self.ends
        return end.error


def single_token(event: ev.Event) -> int | None:
    """The token of an event that pushes one, wherever the answer stands; None: it does something else."""
    if isinstance(event, ev.TokensPushed) and event.start_index is None and len(event.token_ids) == 1:
        return event.token_ids[0]
    return None
