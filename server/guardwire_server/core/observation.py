"""What the engine tells of itself to whoever watches: snapshots of its load, one report a step, the ends of streams.

Integers are added up where they arise and read when somebody asks, since recording a value for every token would cost
more than judging it on a small model. What is recorded one by one is what happens once a step, once a stream, or is
drawn as a sample.
"""

from typing import NamedTuple, Protocol

from guardwire_server.core.events import StreamEnded, Update
from guardwire_server.core.scheduler import Scheduler
from guardwire_server.core.step_plan import StepPlan


class EngineLoad(NamedTuple):
    """What an engine has done and has to do, at one moment. `arena_used` is a share, 0 to 1.

    `num_judged`: tokens judged so far as safe, controversial, unsafe. `num_reused_tokens`: tokens whose keys and values
    were copied from earlier sequences and so never went through a step.
    """

    num_sequences: int = 0
    num_pending_tokens: int = 0
    arena_used: float = 0.0
    num_steps: int = 0
    num_step_sequences: int = 0
    num_step_tokens: int = 0
    num_evictions: int = 0
    num_reprefilled_tokens: int = 0
    num_reused_tokens: int = 0
    num_judged: tuple[int, int, int] = (0, 0, 0)

    def after(
        self,
        scheduler: Scheduler,
        plan: StepPlan | None = None,
        num_judged: tuple[int, int, int] = (0, 0, 0),
    ) -> "EngineLoad":
        """What it is now, by the scheduler, and with what `plan` has done, if a step has been done."""
        safe, controversial, unsafe = self.num_judged
        return EngineLoad(
            num_sequences=scheduler.num_sequences,
            num_pending_tokens=scheduler.num_pending_tokens,
            arena_used=scheduler.arena_used,
            num_steps=self.num_steps + (plan is not None),
            num_step_sequences=self.num_step_sequences + (len(plan.chunks) if plan else 0),
            num_step_tokens=self.num_step_tokens + (plan.num_tokens if plan else 0),
            num_evictions=scheduler.num_evictions,
            num_reprefilled_tokens=scheduler.num_reprefilled_tokens,
            num_reused_tokens=scheduler.num_reused_tokens,
            num_judged=(safe + num_judged[0], controversial + num_judged[1], unsafe + num_judged[2]),
        )


class StepReport(NamedTuple):
    """One step of an engine.

    `model_kind` is `stream` or `gen`; times are seconds. `queue_wait_s` is how long one sequence of the step, drawn as
    a sample, had waited for it; None: the sample is not among them.
    """

    model_kind: str
    duration_s: float
    queue_wait_s: float | None
    plan: StepPlan
    has_failed: bool


class StepObserver(Protocol):
    """Who is told of every step, on the device thread."""

    def step_done(self, report: StepReport) -> None:
        """Takes a report; quick."""
        ...


class StreamObserver(Protocol):
    """Who is told of one stream, on the event loop."""

    def told(self, update: Update) -> None:
        """The caller is being told something that is no verdict on tokens."""
        ...

    def lagged(self, lag_s: float) -> None:
        """A token, drawn as a sample, came `lag_s` seconds before its verdict went out."""
        ...

    def closed(self, end: StreamEnded | None, num_tokens: int) -> None:
        """The stream is over with `num_tokens` tokens pushed; `end` is None if its call was gone before it ended."""
        ...
