"""What `send` and `demo` show while they work: a live bar on a terminal, and the changes of path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from overlay.cli.output import clean, say, size_text
from overlay.endpoint import Endpoint
from overlay.events import Event, PathChanged, PathLost
from overlay.session import Session


class Progress:
    """A progress bar with rate and transport; nothing at all when the console is no terminal.

    Args:
        console: where.
        session: whose path is shown.
    """

    def __init__(self, console: Console, session: Session) -> None:
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _RateColumn(),
            _PathColumn(session),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def file(self, name: str, size: int | None) -> Iterator[Callable[[int], None]]:
        """Show one file; call what it gives with the number of bytes that went."""
        task = self._bar.add_task(clean(name), total=size)

        def advance(count: int) -> None:
            self._bar.advance(task, count)

        yield advance
        if size is None:
            self._bar.update(task, total=self._bar.tasks[task].completed)


async def watch_paths(
    endpoint: Endpoint, console: Console | None, changed: Callable[[Event], None] | None = None
) -> None:
    """Say when the path changes, until cancelled.

    Args:
        endpoint: whose.
        console: where; None: nowhere.
        changed: is told, too.
    """
    last = ""
    async for event in endpoint.events():
        if changed is not None:
            changed(event)
        match event:
            case PathChanged(_, path):
                text = f"now over {path}: {path.origin}"
            case PathLost(_, _, remote, 0):
                text = f"lost {remote}, looking for another path"
            case _:
                continue
        if console is not None and text != last:
            say(console, text)
        last = text


class _RateColumn(ProgressColumn):
    """Bytes per second, in the units of everything else here; rich's own column is decimal."""

    def render(self, task: Task) -> Text:
        """See rich."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{size_text(speed)}/s", style="progress.data.speed")


class _PathColumn(ProgressColumn):
    """The transport in use."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def render(self, task: Task) -> Text:
        """See rich."""
        del task
        paths = self._session.paths
        if not paths or paths[0].suspect:
            return Text("no path", style="yellow")
        return Text(f"over {paths[0].transport}", style="cyan")
