"""The other end of `overlay.cli.control`: what `overlay peers` asks an `overlay run`."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from overlay.cli.control_place import ControlError, open_directory, socket_path
from overlay.cli.output import ExitCode, UsageError

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""Of one line. A peer with all addresses and connections that it may have takes less than 1 MiB."""
ANSWER_TIMEOUT: Final = 20.0
"""Seconds: for the next line of an answer."""

_FOREIGN: Final = "the answer is none of ours: is it another version that runs?"


class ControlClient:
    """A connection to an `overlay run`; made by `reach`. One request at a time."""

    def __init__(self, book: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._book = book
        self._reader = reader
        self._writer = writer

    async def request(self, do: str, **fields: Any) -> dict[str, Any]:
        """Have something done; the answer. A cancelled request may or may not have been carried out.

        Raises:
            UsageError: there is no such peer, ticket or name.
            ControlError: it cannot be done, or nobody answers.
        """
        self._writer.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_TIMEOUT):
            answer = await self._line()
        if answer.get("ok") is True:
            return answer
        text = str(answer.get("error", "no reason given"))
        raise UsageError(text) if answer.get("exit_code") == ExitCode.USAGE else ControlError(text)

    async def peers(self) -> list[dict[str, Any]]:
        """All peers, as `peer_document` describes them.

        Raises:
            ControlError: nobody answers.
        """
        return await self._list("peers")

    async def watch(self) -> AsyncGenerator[dict[str, Any], None]:
        """All peers, each as an event called `peer`, then each event, until the `overlay run` ends.

        Raises:
            ControlError: nobody answers, or it has ended.
        """
        for peer in await self._list("watch"):
            yield {"event": "peer", **peer}
        while True:
            yield await self._line()

    async def _list(self, do: str) -> list[dict[str, Any]]:
        count = (await self.request(do)).get("count")
        if not isinstance(count, int):
            raise ControlError(_FOREIGN)
        peers = []
        for _ in range(count):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                peers.append(await self._line())
        return peers

    async def _line(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise ControlError(f"the overlay with the book {self._book} has ended")
            answer = json.loads(line)
        except ConnectionError as error:
            raise ControlError(f"the overlay with the book {self._book} has ended") from error
        except ValueError as error:
            raise ControlError(_FOREIGN) from error
        if not isinstance(answer, dict):
            raise ControlError(_FOREIGN)
        return answer


@asynccontextmanager
async def reach(book: Path) -> AsyncIterator[ControlClient]:
    """Connect to the `overlay run` that has this book.

    Raises:
        ControlError: nobody runs, others could be in between, or it does not answer in time.
    """
    path = socket_path(book)
    try:
        # Looked at before anything is said: what is there could be somebody else's.
        os.close(open_directory(path.parent, ours=False))
        async with asyncio.timeout(ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(os.fspath(path), limit=MAX_ANSWER_BYTES)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        cure = "start `overlay run`, or give the book of another one with `--book PATH`"
        raise ControlError(f"no overlay runs with the book {book}: {cure}") from error
    except TimeoutError as error:
        raise ControlError(f"the overlay with the book {book} does not answer") from error
    try:
        yield ControlClient(book, reader, writer)
    except TimeoutError as error:
        raise ControlError(f"the overlay with the book {book} does not answer") from error
    finally:
        writer.transport.abort()
