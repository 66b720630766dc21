"""Shows on a terminal how far the loading of models is."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[int, int], None]


@contextlib.contextmanager
def loading_display() -> Iterator[Callable[[str], Report]]:
    """Gives, for a model's name, what to call with the loaded and all parameters; silent without a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("loading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def begin(name: str) -> Report:
        progress.start()
        task = progress.add_task(name, total=None)

        def report(num_done: int, num_total: int) -> None:
            progress.update(task, completed=num_done, total=num_total)
            if num_done == num_total:
                progress.stop()

        return report

    try:
        yield begin
    finally:
        progress.stop()
