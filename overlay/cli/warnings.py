"""What the library warns of, told to whoever runs a command."""

import logging
from contextlib import suppress

from overlay.cli.output import fail


class WarningLines(logging.Handler):
    """Prints each warning and error of the library on standard error: one line, without its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one. An exception that comes with it is named: where it was raised is for `-v`."""
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f": {type(error).__name__}: {error}"
        # A command goes on without anybody who reads its warnings.
        with suppress(OSError, ValueError):
            fail(" ".join(f"{record.levelname.lower()}: {record.getMessage()}{why}".split()))


def show_warnings(logger: logging.Logger) -> None:
    """From now on, and in no other way; a second call changes nothing."""
    if not any(isinstance(handler, WarningLines) for handler in logger.handlers):
        logger.addHandler(WarningLines())
    logger.propagate = False
