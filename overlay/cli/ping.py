"""`overlay ping`: how far away a key is, and on which path."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from overlay.addresses import Ticket
from overlay.cli.output import ExitCode, emit, fail, out, quality_document, quality_text
from overlay.config import Config
from overlay.endpoint import Endpoint
from overlay.events import Path
from overlay.identity import Identity
from overlay.session import Session


@dataclass(frozen=True, slots=True)
class PingOptions:
    """The command line of `ping`. Times in seconds."""

    ticket: Ticket
    identity: Identity
    config: Config
    count: int | None
    """None: until stopped."""
    interval: float
    wait: float
    """For each answer."""
    json: bool


async def ping(options: PingOptions) -> int:
    """Run the command.

    Raises:
        DialError: nobody, or somebody else, answers. SessionError: the connection was lost for good.
    """
    async with Endpoint(options.identity, options.config) as endpoint:
        session = await endpoint.connect(options.ticket)
        times: list[float] = []
        paths: dict[str, Path] = {}
        sent = 0
        try:
            while options.count is None or sent < options.count:
                if sent:
                    await asyncio.sleep(options.interval)
                sent += 1
                await _once(session, options, sent, times, paths)
        finally:
            _summary(options, sent, times, paths)
        await session.aclose()
    return ExitCode.DONE if len(times) == sent else ExitCode.LOST


async def _once(
    session: Session, options: PingOptions, number: int, times: list[float], paths: dict[str, Path]
) -> None:
    answer = None
    with suppress(TimeoutError):
        async with asyncio.timeout(options.wait):
            answer = await session.ping()
    if answer is None:
        if options.json:
            emit({"event": "timeout", "seq": number, "seconds": options.wait})
        else:
            fail(f"ping {number}: no answer within {options.wait:g} s")
        return
    rtt, path = answer
    times.append(1000 * rtt)
    paths[str(path)] = path
    if options.json:
        fields = {"rtt_ms": round(1000 * rtt, 3), "transport": path.transport, "path": str(path)}
        emit({"event": "pong", "seq": number, **fields})
    else:
        out(f"{number}: {1000 * rtt:.2f} ms over {path}")


def _summary(options: PingOptions, sent: int, times: list[float], paths: dict[str, Path]) -> None:
    """All answers in one line, and the newest that is known of each path that brought one."""
    lowest, mean, highest = (min(times), sum(times) / len(times), max(times)) if times else (0.0, 0.0, 0.0)
    if options.json:
        qualities = [{"path": name, **quality_document(path)} for name, path in paths.items()]
        document: dict[str, Any] = {"event": "summary", "sent": sent, "answered": len(times), "paths": qualities}
        rtts = {"min_ms": lowest, "avg_ms": mean, "max_ms": highest} if times else {}
        emit(document | {name: round(value, 3) for name, value in rtts.items()})
    else:
        spread = f", min/avg/max {lowest:.2f}/{mean:.2f}/{highest:.2f} ms" if times else ""
        out(f"{sent} sent, {len(times)} answered{spread}")
        for name, path in paths.items():
            out(f"{name}: {quality_text(path)}")
