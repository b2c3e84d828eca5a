"""The race's runner: who starts, who wins, and that the losers are closed."""

import asyncio

import pytest

from overlay.dial import Race, Try
from overlay.errors import HandshakeError, SessionRefused
from overlay.protocol.codes import CloseCode
from overlay.protocol.race import Start

FAR = 3600.0


class Course:
    """Attempts as the test tells them: an exception, a name, or an event to wait for."""

    def __init__(self, **results: object) -> None:
        self.results = results
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.discarded: list[str] = []

    async def attempt(self, one: Try) -> str:
        host = one.address.host
        self.started.append(host)
        result = self.results[host]
        try:
            if isinstance(result, asyncio.Event):
                await result.wait()
                return host
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(host)
            raise
        if isinstance(result, Exception):
            raise result
        return host

    def race(self, *starts: tuple[str, float]) -> Race[str]:
        return Race([Start(at, "quic", host, 1) for host, at in starts], self.attempt, self.discarded.append)


async def test_the_first_that_works_wins_and_the_rest_is_cancelled() -> None:
    """A slow one is cancelled, a later one never starts."""
    course = Course(slow=asyncio.Event(), fast="ok", late="ok")
    assert await course.race(("slow", 0), ("fast", 0), ("late", FAR)).run() == "fast"
    assert course.started == ["slow", "fast"]
    assert course.cancelled == ["slow"]


async def test_a_failure_starts_the_next_at_once() -> None:
    """Nobody waits an hour for the second address when the first one refuses."""
    course = Course(broken=ConnectionRefusedError("no"), good="ok")
    assert await course.race(("broken", 0), ("good", FAR)).run() == "good"


async def test_two_that_work_at_once_give_one_winner_and_one_discarded() -> None:
    """What a loser has made is closed."""
    gate = asyncio.Event()
    course = Course(a=gate, b=gate)
    race = asyncio.create_task(course.race(("a", 0), ("b", 0)).run())
    while len(course.started) < 2:
        await asyncio.sleep(0)
    gate.set()
    won = await race
    assert sorted([won or "", *course.discarded]) == ["a", "b"]


async def test_all_failures_are_recorded_with_stage_and_cause() -> None:
    """The stage follows from the kind of the error."""
    course = Course(
        a=ConnectionRefusedError("no"),
        b=HandshakeError("who are you"),
        c=SessionRefused(CloseCode.BUSY, "later"),
    )
    race = course.race(("a", 0), ("b", 0), ("c", 0))
    assert await race.run() is None
    assert [(one.address, one.stage) for one in race.failures] == [
        ("quic://a:1", "connect"),
        ("quic://b:1", "handshake"),
        ("quic://c:1", "hello"),
    ]
    assert all(one.milliseconds >= 0 for one in race.failures)


async def test_a_cancelled_race_leaves_nothing_running() -> None:
    """Every attempt is cancelled and awaited."""
    course = Course(a=asyncio.Event(), b=asyncio.Event())
    race = course.race(("a", 0), ("b", 0))
    task = asyncio.create_task(race.run())
    while len(course.started) < 2:
        await asyncio.sleep(0)
    assert [one.stage for one in race.report()] == ["connect", "connect"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(course.cancelled) == ["a", "b"]


async def test_a_fault_of_ours_is_logged_and_ends_that_attempt_only(caplog: pytest.LogCaptureFixture) -> None:
    """A programming error is reported, and the other address still has its chance."""
    course = Course(a=ZeroDivisionError("bug"), b="ok")
    assert await course.race(("a", 0), ("b", FAR)).run() == "b"
    assert "please report" in caplog.text


async def test_the_peers_own_refusal_ends_the_race() -> None:
    """Nobody waits for a black hole when the key itself has said no."""
    course = Course(hole=asyncio.Event(), no=SessionRefused(CloseCode.REFUSED, "go away"))
    race = course.race(("hole", 0), ("no", 0))
    assert await race.run() is None
    assert course.cancelled == ["hole"]
    assert [one.stage for one in race.failures] == ["hello"]


async def test_an_address_that_becomes_known_joins_the_race() -> None:
    """A second caller's good address helps the first one, too."""
    course = Course(hole=asyncio.Event(), good="ok")
    race = course.race(("hole", 0))
    task = asyncio.create_task(race.run())
    while not course.started:
        await asyncio.sleep(0)
    race.add([Start(0, "quic", "good", 1)])
    assert await task == "good"
    assert course.cancelled == ["hole"]


async def test_a_race_out_of_time_tells_what_was_still_under_way() -> None:
    """Cancelled from outside, the attempts that ran are recorded as time-outs."""
    course = Course(hole=asyncio.Event())
    race = course.race(("hole", 0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await race.run()
    assert [(one.stage, str(one.cause)) for one in race.failures] in ([], [("connect", "no answer in time")])
