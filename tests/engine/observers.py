"""Observers that remember what they were told."""

from guardwire_server.core.events import StreamEnded, Update
from guardwire_server.core.observation import StepReport


class RememberedSteps:
    """A StepObserver."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def step_done(self, report: StepReport) -> None:
        self.reports.append(report)


class RememberedStream:
    """A StreamObserver; called with what streams are made with, it gives itself."""

    def __init__(self) -> None:
        self.ids: tuple[int, str] | None = None
        self.updates: list[Update] = []
        self.lags_s: list[float] = []
        self.ends: list[tuple[StreamEnded | None, int]] = []

    def __call__(self, seq_id: int, session_id: str) -> "RememberedStream":
        self.ids = seq_id, session_id
        return self

    def told(self, update: Update) -> None:
        self.updates.append(update)

    def lagged(self, lag_s: float) -> None:
        self.lags_s.append(lag_s)

    def closed(self, end: StreamEnded | None, num_tokens: int) -> None:
        self.ends.append((end, num_tokens))
