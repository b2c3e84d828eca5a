"""What a socket refuses: who is believed, what is tried again, what is sent one by one, and what waits."""

import errno
import socket
from collections.abc import Iterator

import pytest

from overlay.transports.ancillary import IP_PKTINFO, Local, SocketAddress
from overlay.transports.udp_sender import MAX_QUEUED, MAX_QUEUED_BYTES, MAX_SINGLES, UdpSender

PEER = ("192.0.2.2", 40_000)
OTHER = ("192.0.2.3", 40_000)
SOURCE = Local(socket.IPPROTO_IP, IP_PKTINFO, bytes([192, 0, 2, 1]), 0)
BURST = b"\xa0aa\xa0bb\xa0c"
SINGLES = [b"\xa0aa", b"\xa0bb", b"\xa0c"]


class Kernel:
    """A socket that refuses the next calls for reasons that are given; None lets one pass.

    Attributes:
        sent: data of each call that passed, and whether it was a burst and named a source.
        calls: all of them.
        drained: how often the error queue was read.
        watching: whether it is to tell when there is room.
    """

    def __init__(self, *answers: int | None, always: int | None = None) -> None:
        self.sent: list[tuple[bytes, bool, bool]] = []
        self.calls = 0
        self.drained = 0
        self.watching = False
        self.always = always
        self._answers: Iterator[int | None] = iter(answers)

    def sendto(self, data: bytes, remote: SocketAddress) -> None:
        self._take(data, burst=False, source=False)

    def sendmsg(
        self, buffers: tuple[bytes], controls: tuple[tuple[int, int, bytes], ...], flags: int, remote: SocketAddress
    ) -> None:
        kinds = {kind for _, kind, _ in controls}
        self._take(b"".join(buffers), burst=kinds != {IP_PKTINFO}, source=IP_PKTINFO in kinds)

    def _take(self, data: bytes, *, burst: bool, source: bool) -> None:
        self.calls += 1
        code = next(self._answers, self.always)
        if code is not None:
            raise OSError(code, "on purpose")
        self.sent.append((data, burst, source))

    def drain(self) -> None:
        self.drained += 1

    def watch(self, wanted: bool) -> None:
        self.watching = wanted


def sender(kernel: Kernel, *, takes_bursts: bool = True) -> UdpSender:
    return UdpSender(
        kernel,  # type: ignore[arg-type]
        takes_bursts=takes_bursts,
        drain_errors=kernel.drain,
        watch_room=kernel.watch,
    )


def test_a_burst_is_one_call() -> None:
    """From the address that was asked, if one is named."""
    kernel = Kernel()
    udp = sender(kernel)
    assert udp.send_burst(BURST, 3, PEER, None) is None
    assert udp.send_burst(BURST, 3, PEER, SOURCE) is None
    assert kernel.sent == [(BURST, True, False), (BURST, True, True)]


def test_where_the_system_takes_no_bursts_they_are_not_tried() -> None:
    kernel = Kernel()
    assert sender(kernel, takes_bursts=False).send_burst(BURST, 3, PEER, None) is None
    assert kernel.sent == [(data, False, False) for data in SINGLES]


@pytest.mark.parametrize(
    "code", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EACCES, errno.EMSGSIZE]
)
def test_what_an_icmp_message_says_costs_one_call_and_changes_nothing(code: int) -> None:
    """Anybody can send one: the datagram or burst goes out all the same, and bursts stay bursts."""
    kernel = Kernel(code, None, code)
    udp = sender(kernel)
    assert udp.send_burst(BURST, 3, PEER, None) is None
    assert udp.send((b"\xa0",), PEER, None) is None
    assert udp.send_burst(BURST, 3, PEER, None) is None
    assert kernel.sent == [(BURST, True, False), (b"\xa0", False, False), (BURST, True, False)]
    assert kernel.drained == 2


def test_a_route_without_bursts_is_asked_once() -> None:
    """Others may have another route."""
    kernel = Kernel(errno.EIO, errno.EIO)
    udp = sender(kernel)
    for _ in range(2):
        assert udp.send_burst(BURST, 3, PEER, None) is None
    assert udp.send_burst(BURST, 3, OTHER, None) is None
    assert kernel.sent == [(data, False, False) for data in SINGLES * 2] + [(BURST, True, False)]
    assert kernel.calls == 2 + 6 + 1


def test_few_routes_without_bursts_are_remembered() -> None:
    kernel = Kernel()
    udp = sender(kernel)
    for port in range(2 * MAX_SINGLES):
        kernel._answers = iter((errno.EIO, errno.EIO))
        udp.send_burst(BURST, 3, ("192.0.2.2", port), None)
        assert len(udp._singles) <= MAX_SINGLES


def test_a_burst_that_is_refused_for_its_size_goes_one_by_one() -> None:
    """Its last datagram may be short enough; the refusal says what was wrong with the others."""
    kernel = Kernel(errno.EINVAL, errno.EINVAL, *[errno.EMSGSIZE] * 4)
    refused = sender(kernel).send_burst(BURST, 3, PEER, None)
    assert refused is not None
    assert refused.errno == errno.EMSGSIZE
    assert kernel.sent == [(b"\xa0c", False, False)]


@pytest.mark.parametrize(
    ("code", "calls"),
    [(errno.EPERM, 1), (errno.ENOBUFS, 1), (errno.ENETUNREACH, 2), (errno.EMSGSIZE, 2), (errno.ECONNREFUSED, 2)],
)
def test_a_refused_burst_is_lost_as_a_whole(code: int, calls: int) -> None:
    """By a firewall, a full device, a missing route: 64 datagrams would meet the same, one by one."""
    kernel = Kernel(always=code)
    refused = sender(kernel).send_burst(BURST, 3, PEER, None)
    assert refused is not None
    assert refused.errno == code
    assert kernel.calls == calls


def test_a_source_that_went_away_is_left_out() -> None:
    """Of a datagram and of a burst: the kernel chooses another one."""
    kernel = Kernel(errno.ENETUNREACH, errno.ENETUNREACH, None, errno.EINVAL, errno.EINVAL, None)
    udp = sender(kernel)
    assert udp.send((b"\xa0",), PEER, SOURCE) is None
    assert udp.send_burst(BURST, 3, PEER, SOURCE) is None
    assert kernel.sent == [(b"\xa0", False, False), (BURST, True, False)]


def test_without_room_datagrams_wait_in_a_bounded_queue() -> None:
    """They leave in order when there is room again, and what is beyond the bound is lost."""
    kernel = Kernel(always=errno.EAGAIN)
    udp = sender(kernel)
    for number in range(MAX_QUEUED + 10):
        assert udp.send((number.to_bytes(2, "big"),), PEER, None) is None
    assert kernel.calls == 1
    assert udp.waiting == MAX_QUEUED
    assert kernel.watching
    udp.writable()
    assert kernel.watching
    # Whatever else is refused does not stop those behind it.
    kernel.always = None
    kernel._answers = iter((None, errno.ENETUNREACH, errno.ENETUNREACH))
    udp.writable()
    assert [data for data, _, _ in kernel.sent] == [
        number.to_bytes(2, "big") for number in range(MAX_QUEUED) if number != 1
    ]
    assert not udp.waiting
    assert not kernel.watching


def test_what_waits_is_bounded_in_bytes_as_well() -> None:
    kernel = Kernel(always=errno.EAGAIN)
    udp = sender(kernel)
    udp.send([bytes(65_507)] * MAX_QUEUED, PEER, None)
    assert udp.waiting == MAX_QUEUED_BYTES // 65_507
    udp.clear()
    udp.send((b"\xa0",), PEER, None)
    assert udp.waiting == 1


def test_a_burst_without_room_waits_behind_what_waits() -> None:
    """Datagram by datagram, in order."""
    kernel = Kernel(errno.EAGAIN, errno.EAGAIN)
    udp = sender(kernel)
    assert udp.send_burst(BURST, 3, PEER, None) is None
    assert udp.send_burst(BURST, 3, PEER, None) is None
    assert udp.waiting == 6
    udp.writable()
    assert kernel.sent == [(data, False, False) for data in SINGLES * 2]
