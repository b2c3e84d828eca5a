"""From a command to the event loop: the loop, signals, errors, the exit code."""

import asyncio
import errno
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from overlay.cli.output import ExitCode, UsageError, emit, error_document, exit_code, fail
from overlay.errors import OverlayError

try:
    import uvloop
except ImportError:
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
READER_SECONDS: Final = 1.0
"""From one look at whether somebody still reads our output to the next one."""
STANDARD_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""Their names in `sys` and their modes, by descriptor."""


def run(work: Coroutine[Any, Any, int], *, document: bool = False) -> int:
    """Run a command to its end, and return its exit code.

    SIGINT and SIGTERM cancel it: sessions are closed and temporary files removed. A second signal kills. Errors are
    printed; only a BrokenPipeError is raised, as there is nobody to print it for: `end_unread` is what to do.

    Args:
        work: the command.
        document: print errors as a JSON document on standard output, too.
    """
    open_standard_streams()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_interruptible(work))
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the end of the line: everything becomes an exit code
        if not isinstance(error, OverlayError | UsageError | OSError):
            fail(f"this is a fault of overlay, please report it: {type(error).__name__}: {error}")
            if logging.getLogger("overlay").isEnabledFor(logging.INFO):
                traceback.print_exception(error)
            return ExitCode.OTHER
        fail(error)
        if document:
            emit(error_document(error))
        return exit_code(error)


def open_standard_streams() -> None:
    """Open the null device as each of the standard streams that whoever has started us has closed.

    What is opened next would get its number otherwise, and with that what others print or read there; libuv, which
    uvloop has its loop from, aborts when such a one is closed. To be called before anything is opened; again does no
    harm.
    """
    for number, (name, mode) in enumerate(STANDARD_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            # open(2) takes the lowest number that is free, and those below are open by now.
            opened = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(opened, True)
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(opened, mode, closefd=False))


def end_unread() -> ExitCode:
    """End a command whose standard output nobody reads any more; its exit code.

    Python would complain about it again at its end.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OTHER


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a task beside the body, and end it with the body. Its failure is raised at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
    if error is not None:
        raise error


async def while_read(work: Coroutine[Any, Any, None]) -> None:
    """Do some work for whoever reads our standard output: to its end, or until the reader has gone.

    A write would tell, but a command that only waits for something to happen may not write for hours.

    Raises:
        BrokenPipeError: the reader has gone.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=READER_SECONDS))[0]:
            if _reader_has_gone():
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    finally:
        task.cancel()
        await asyncio.wait({task})
    task.result()


def _reader_has_gone() -> bool:
    # Not the loop's add_reader, which refuses files, and takes what somebody types for news.
    poll = select.poll()
    # Nothing is asked for: errors and hang-ups are always reported, and a regular file has neither.
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt)
    await asyncio.wait([task])
    return ExitCode.INTERRUPTED if interrupted and task.cancelled() else task.result()
