"""What one watches while a load runs: how far it is, who is in, what the last requests waited."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from loadtest.results.records import Record, percentile

RECENT = 20


class Display:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._failed = 0

    def ended(self, record: Record) -> None:
        if record.completed:
            self._recent.append(record.ttft)
        elif record.failed:
            self._failed += 1
        said = f"TTFT p50 of the last {len(self._recent)}: {percentile(self._recent, 50):.2f} s" if self._recent else ""
        failed = f"  [red]{self._failed} failed[/]" if self._failed else ""
        self._progress.update(self._task, advance=1, said=said + failed)


@contextmanager
def displaying(console: Console, title: str, total: int) -> Iterator[Display]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Display(progress, progress.add_task(title, total=total, said=""))
