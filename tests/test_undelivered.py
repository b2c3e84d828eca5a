"""The queue of frames that come back."""

import asyncio

import pytest

from overlay import Identity, Reason, Undelivered
from overlay import undelivered as module
from overlay.undelivered import Returns

PEER = Identity.generate().peer_id


def lost(frame: bytes) -> Undelivered:
    return Undelivered(frame, PEER, Reason.EXPIRED, maybe_delivered=False)


async def test_frames_come_in_order_each_to_one_reader_and_a_cancelled_wait_loses_none() -> None:
    returns = Returns()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(returns)
    readers = [asyncio.create_task(anext(returns)) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(4):
        returns.add(lost(bytes([number])))
    assert {task.result().frame for task in readers if await asyncio.wait([task])} == {b"\0", b"\1", b"\2"}
    assert len(returns) == 1
    returns.end()
    assert [one.frame async for one in returns] == [b"\3"]
    with pytest.raises(StopAsyncIteration):
        await anext(returns)


async def test_too_many_drop_the_oldest_and_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FRAMES", 3)
    returns = Returns()
    for number in range(5):
        returns.add(lost(bytes([number])))
    assert (len(returns), returns.dropped) == (3, 2)
    assert (await anext(returns)).frame == b"\2"
    monkeypatch.setattr(module, "SIZE", 100)
    returns.add(lost(bytes(99)))
    assert (len(returns), returns.dropped) == (2, 3)
    assert [record.message for record in caplog.records] == [
        "undelivered frames are not fetched: the oldest are dropped from now on"
    ]
