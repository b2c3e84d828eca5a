"""What all drivers of connections over UDP have in common: mistakes stay where they are made, and ends are heard."""

import errno
import logging
from typing import Any

import pytest
from transport_support import MemoryUdp

from overlay.protocol.codes import CloseCode
from overlay.transports.base import ClosedBy, CloseReason
from overlay.transports.lazy_timer import clock
from overlay.transports.packet_driver import PacketDriver

PEER = ("192.0.2.2", 40_000)
REFUSED = OSError(errno.ECONNREFUSED, "refused")


class Link:
    def __init__(self) -> None:
        self.reasons: list[CloseReason] = []
        self.fails = False

    def ended(self, reason: CloseReason) -> None:
        self.reasons.append(reason)
        if self.fails:
            raise RuntimeError("the handler's end")

    def discard(self) -> None:
        raise AssertionError


class Outcome:
    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.forgotten_drivers: list[Any] = []

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def forgotten(self, driver: Any) -> None:
        self.forgotten_drivers.append(driver)


class Driver(PacketDriver[Link]):
    """With a core that takes down what is asked of it, and fails where it is told to."""

    transport = "test"

    def __init__(self, *fails: str) -> None:
        self.did: list[str] = []
        self.heard = False
        self.outcome = Outcome()
        self.wanted: float | None = None
        self._fails = fails
        super().__init__(MemoryUdp(), PEER, None, self.outcome)

    def fail(self, error: Exception, code: CloseCode) -> None:
        raise AssertionError

    def proven(self) -> Link:
        self.link = Link()
        self._handshaking = False
        return self.link

    def _do(self, what: str) -> None:
        self.did.append(what)
        if what in self._fails:
            raise ValueError(what)

    def _dispatch(self) -> None:
        self.flush()
        self._do("dispatch")

    def _send_queued(self) -> None:
        self._do("send")

    def _sent(self) -> None:
        self.did.append("sent")
        self._timer.arm()

    def _deadline(self) -> float | None:
        if "deadline" in self._fails:
            raise ValueError("deadline")
        return self.wanted

    def _handle_timeout(self, now: float) -> None:
        self._do("timeout")

    def _has_heard(self) -> bool:
        return self.heard

    def _say_goodbye(self) -> None:
        self._do("goodbye")

    def _release(self) -> None:
        self.did.append("release")


async def test_what_handlers_flush_leaves_once_at_the_end() -> None:
    driver = Driver()
    driver.batch_ended()
    assert driver.did == ["dispatch", "send", "sent"]
    driver.flush()
    assert driver.did == ["dispatch", "send", "sent", "send", "sent"]


@pytest.mark.parametrize("where", ["dispatch", "send", "timeout", "deadline"])
@pytest.mark.parametrize("worse", [(), ("goodbye",)])
async def test_a_mistake_ends_the_connection_and_the_handler_is_told(where: str, worse: tuple[str, ...]) -> None:
    """Wherever it is made, and even if no goodbye can be said; afterwards nothing happens any more."""
    driver = Driver(where, *worse)
    link = driver.proven()
    if where == "deadline":
        driver._timer._fired()
    else:
        driver._timer_fired(0.0)
    assert [(reason.by, reason.code) for reason in link.reasons] == [(ClosedBy.NETWORK, CloseCode.INTERNAL_ERROR)]
    assert where in link.reasons[0].reason
    assert driver.did[-2:] == ["goodbye", "release"]
    assert driver.is_forgotten
    assert driver.outcome.forgotten_drivers == [driver]
    assert driver.outcome.errors == []
    done = list(driver.did)
    driver.batch_ended()
    driver.flush()
    driver.forget()
    assert driver.did == done


async def test_a_mistake_in_a_handshake_tells_whoever_waits() -> None:
    driver = Driver("dispatch")
    driver.batch_ended()
    [error] = driver.outcome.errors
    assert "dispatch" in str(error)
    assert driver.outcome.forgotten_drivers == [driver]


async def test_a_handler_that_fails_at_its_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody above could do more about it."""
    driver = Driver("send")
    link = driver.proven()
    link.fails = True
    driver.flush()
    assert driver.is_forgotten
    assert "the handler's end" in caplog.text


async def test_strangers_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Their mistakes are told to who wants to hear them."""
    with caplog.at_level(logging.INFO):
        Driver("dispatch", "goodbye").batch_ended()
    assert caplog.text == ""


async def test_icmp_ends_only_a_handshake_that_has_heard_nothing() -> None:
    """From the socket and the address of that dial."""
    driver = Driver()
    driver.unreachable(MemoryUdp(), PEER, REFUSED)
    driver.unreachable(driver._udp, ("192.0.2.2", 40_001), REFUSED)
    driver.heard = True
    driver.unreachable(driver._udp, PEER, REFUSED)
    assert not driver.is_forgotten
    driver.heard = False
    driver.unreachable(driver._udp, PEER, REFUSED)
    assert driver.outcome.errors == [REFUSED]
    assert driver.outcome.forgotten_drivers == [driver]
    established = Driver()
    established.proven()
    established.unreachable(established._udp, PEER, REFUSED)
    assert not established.is_forgotten


async def test_nothing_of_a_forgotten_driver_waits_in_the_loop() -> None:
    driver = Driver()
    driver.wanted = clock() + 3600
    driver.flush()
    handle = driver._timer._handle
    assert handle is not None
    driver.forget()
    assert handle.cancelled()
