"""The shared UDP socket: batches, kinds, reply addresses, weather and full buffers."""

import asyncio
import errno
import select
import socket
from collections.abc import Callable

import pytest
import uvloop

from overlay.addresses import Address
from overlay.transports.ancillary import IP_PKTINFO
from overlay.transports.udp_socket import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    Kind,
    Local,
    Receiver,
    SocketAddress,
    UdpSocket,
)


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[bytes, SocketAddress, Local | None]] = []
        self.batches: list[int] = []
        self.bursts: list[tuple[int, int]] = []
        self.lost: set[tuple[SocketAddress, int]] = set()
        self.changed = asyncio.Event()

    def datagram_received(self, udp: UdpSocket, data: bytes, remote: SocketAddress, local: Local | None) -> None:
        self.got.append((data, remote, local))

    def burst_received(
        self, udp: UdpSocket, data: bytes, segment: int, remote: SocketAddress, local: Local | None
    ) -> None:
        self.bursts.append((len(data), segment))
        for at in range(0, len(data), segment):
            self.datagram_received(udp, data[at : at + segment], remote, local)

    def batch_ended(self, udp: UdpSocket) -> None:
        self.batches.append(len(self.got))
        self.changed.set()

    def unreachable(self, udp: UdpSocket, remote: SocketAddress, code: int) -> None:
        self.lost.add((remote, code))
        self.changed.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.got) < count:
                self.changed.clear()
                await self.changed.wait()

    async def until_lost(self) -> None:
        async with asyncio.timeout(10):
            while not self.lost:
                self.changed.clear()
                await self.changed.wait()


def bound(host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if ":" not in host:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


async def test_a_wake_up_hands_over_all_that_is_there_and_ends_once() -> None:
    """A burst is one batch, and a longer one than the bound is several."""
    udp, sink = UdpSocket(bound()), Sink()
    udp.register("quic", sink)
    with bound() as other:
        for number in range(MAX_BATCH + 6):
            other.sendto(b"\x40" + bytes([number]), ("127.0.0.1", udp.address.port))
        await sink.until(MAX_BATCH + 6)
    assert sink.batches == [MAX_BATCH, MAX_BATCH + 6]
    assert [data[1] for data, _, _ in sink.got] == list(range(MAX_BATCH + 6))
    udp.close()


async def test_a_receiver_that_fails_ends_the_batch_of_the_others() -> None:
    """What was handed over is answered; what was not yet read is not lost."""
    udp, broken, sink = UdpSocket(bound()), Sink(), Sink()
    udp.register("quic", broken)
    udp.register("udp", sink)

    def fail(*_: object) -> None:
        raise ValueError("on purpose")

    vars(broken)["datagram_received"] = fail
    with bound() as other:
        for first in (b"\xa0one", b"\x40", b"\xa0two"):
            other.sendto(first, ("127.0.0.1", udp.address.port))
        with pytest.raises(ValueError, match="on purpose"):
            udp._readable()
        assert sink.batches == [1]
        await sink.until(2)
        assert sink.batches == [1, 2]
    udp.close()


async def test_the_first_byte_tells_whom_a_datagram_is_for() -> None:
    """RFC 9443: QUIC has bit 0x40, raw UDP is 0b10xxxxxx, everything else is nobody's."""
    udp, quic, raw = UdpSocket(bound()), Sink(), Sink()
    udp.register("quic", quic)
    udp.register("udp", raw)
    with bound() as other:
        for first in (0x00, 0x3F, 0x80, 0xBF, 0x16, 0x40, 0x7F, 0xC0, 0xFF):
            other.sendto(bytes([first]), ("127.0.0.1", udp.address.port))
        other.sendto(b"", ("127.0.0.1", udp.address.port))
        other.sendto(b"\x41", ("127.0.0.1", udp.address.port))
        await quic.until(5)
    assert [data[0] for data, _, _ in quic.got] == [0x40, 0x7F, 0xC0, 0xFF, 0x41]
    assert [data[0] for data, _, _ in raw.got] == [0x80, 0xBF]
    udp.unregister("quic")
    assert not udp.is_closed
    udp.unregister("udp")
    assert udp.is_closed


async def test_without_raw_udp_a_version_negotiation_packet_reaches_quic() -> None:
    """It is the one packet of QUIC that may lack bit 0x40."""
    udp, sink = UdpSocket(bound()), Sink()
    udp.register("quic", sink)
    with bound() as other:
        other.sendto(b"\x80\0\0\0\0", ("127.0.0.1", udp.address.port))
        await sink.until(1)
    udp.close()


async def test_a_reply_leaves_from_the_address_that_was_asked() -> None:
    """Loopback has sixteen million addresses, as a router has several."""
    udp, sink = UdpSocket(bound("0.0.0.0")), Sink()
    udp.register("quic", sink)
    loop = asyncio.get_running_loop()
    with bound() as other:
        other.sendto(b"\x40", ("127.0.0.2", udp.address.port))
        await sink.until(1)
        _, remote, local = sink.got[0]
        assert local is not None
        assert udp.send((b"answer",), remote, local) is None
        data, source = await loop.sock_recvfrom(other, 100)
        assert (data, source[0]) == (b"answer", "127.0.0.2")
        assert udp.local_address(local, remote) == Address(None, "127.0.0.2", udp.address.port)
        assert udp.local_address(None, remote) is None
    udp.close()


async def test_a_source_address_that_went_away_does_not_silence_us() -> None:
    """The datagram leaves from another one; the peer's QUIC sees a migration."""
    udp = UdpSocket(bound("0.0.0.0"))
    gone = Local(socket.IPPROTO_IP, IP_PKTINFO, socket.inet_aton("203.0.113.9"), 0)
    with bound() as other:
        assert udp.send((b"hello",), other.getsockname(), gone) is None
        assert await asyncio.get_running_loop().sock_recv(other, 100) == b"hello"
    udp.close()


async def test_weather_drops_in_both_directions() -> None:
    """`drop` stands for a network that blocks UDP."""
    udp, sink = UdpSocket(bound()), Sink()
    udp.register("quic", sink)
    with bound() as other:
        udp.drop = lambda: True
        other.sendto(b"\x40lost", ("127.0.0.1", udp.address.port))
        udp.send((b"lost",), other.getsockname())
        seen = iter((True, False))
        udp.drop = lambda: next(seen)
        other.sendto(b"\x40heard", ("127.0.0.1", udp.address.port))
        await sink.until(1)
        assert sink.got[0][0] == b"\x40heard"
        udp.drop = None
        udp.send((b"seen",), other.getsockname())
        assert await asyncio.get_running_loop().sock_recv(other, 100) == b"seen"
    udp.close()


async def _reach_nobody(host: str) -> None:
    sock = bound(host)
    udp, sink = UdpSocket(sock), Sink()
    udp.register("quic", sink)
    closed = bound(host)
    nowhere = closed.getsockname()
    closed.close()
    for taken in (False, True):
        # The error is there when the loop wakes; or only its place in the queue is, as the error itself was taken.
        assert udp.send((b"a",), nowhere) is None
        assert not taken or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        await sink.until_lost()
        sink.lost.clear()
    with bound(host) as other:
        for number in range(3):
            assert udp.send((b"a",) * 100, nowhere) is None
            assert udp.send((b"hello",), other.getsockname()) is None
            assert await asyncio.get_running_loop().sock_recv(other, 100) == b"hello"
            other.sendto(b"\x40", sock.getsockname())
            await sink.until(number + 1)
    await sink.until_lost()
    assert sink.lost == {(nowhere, errno.ECONNREFUSED)}
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(0) == []
    udp.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_nobody_listens_on_is_told_and_disturbs_nobody(
    host: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Its ICMP errors fail no datagram to others, do not keep the loop awake, and do not deafen uvloop."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_reach_nobody(host))


async def _wait_for_room() -> None:
    udp = UdpSocket(bound())
    udp.register("quic", Sink())
    answers = iter((BlockingIOError(errno.EAGAIN, "full"), BlockingIOError(errno.EAGAIN, "still full")))
    sent, done = [], asyncio.Event()

    def send_one(data: bytes, remote: SocketAddress, local: Local | None) -> None:
        error = next(answers, None)
        if error is not None:
            raise error
        sent.append(data)
        done.set()

    vars(udp._sender)["_send_one"] = send_one
    udp.send((b"waits",), ("127.0.0.1", 9))
    async with asyncio.timeout(10):
        await done.wait()
    assert sent == [b"waits"]
    udp.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_loop_wakes_us_when_there_is_room(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """As often as it takes."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_wait_for_room())


async def test_a_refusal_of_the_kernel_is_returned() -> None:
    """A dialler bound to loopback need not wait for an answer from elsewhere."""
    udp = UdpSocket(bound())
    refused = udp.send((b"a",), ("192.0.2.1", 9))
    assert isinstance(refused, OSError)
    udp.close()
    assert udp.send((b"a",), ("127.0.0.1", 9)) is None


async def test_a_burst_leaves_in_one_call_and_arrives_as_its_datagrams() -> None:
    """In order, the last one shorter; the kernel may join and cut them as it likes."""
    ours, theirs, sink = UdpSocket(bound()), UdpSocket(bound()), Sink()
    theirs.register("udp", sink)
    sent = [bytes([0xA0, number]) + bytes(1000) for number in range(40)] + [b"\xa0end"]
    assert ours.send_burst(b"".join(sent), 1002, ("127.0.0.1", theirs.address.port)) is None
    assert ours.send_burst(b"\xa0alone", 1002, ("127.0.0.1", theirs.address.port)) is None
    await sink.until(42)
    assert [data for data, _, _ in sink.got] == [*sent, b"\xa0alone"]
    assert {remote for _, remote, _ in sink.got} == {("127.0.0.1", ours.address.port)}
    ours.close()
    theirs.close()
    assert ours.send_burst(bytes(10), 5, ("127.0.0.1", 9)) is None


async def test_a_datagram_beyond_the_mtu_is_refused_as_such() -> None:
    """Alone and in a burst: nothing is fragmented, and the sender learns it."""
    udp = UdpSocket(bound())
    sock = udp._socket
    for size in (65_508, 70_000):
        refused = udp.send_burst(bytes(size), size, ("127.0.0.1", sock.getsockname()[1]))
        assert refused is not None
        assert refused.errno == errno.EMSGSIZE
    udp.close()


async def test_what_was_joined_is_told_apart_by_its_first_bytes() -> None:
    """The kernel joins datagrams of one size from one socket, whatever they are; weather takes them one by one."""
    udp, quic, raw = UdpSocket(bound()), Sink(), Sink()
    udp.register("quic", quic)
    udp.register("udp", raw)
    remote = ("127.0.0.1", 4)
    touched: dict[Kind, Receiver] = {}
    udp._hand_over(b"\xa01\xa02\x413\x004\xa0", 2, remote, None, touched)
    assert [data for data, _, _ in quic.got] == [b"\x413"]
    assert [data for data, _, _ in raw.got] == [b"\xa01", b"\xa02", b"\xa0"]
    assert touched == {"quic": quic, "udp": raw}
    udp._hand_over(b"\x411\x412\x413", 2, remote, None, touched)
    assert quic.bursts == [(6, 2)]
    seen = iter((True, False))
    udp.drop = lambda: next(seen)
    udp._hand_over(b"\xa05\xa06", 2, remote, None, touched)
    assert raw.got[-1][0] == b"\xa06"
    assert len(raw.got) == 4
    udp.close()


async def test_one_wake_up_reads_a_bounded_number_of_bytes() -> None:
    """However many datagrams one read brings: timers and writers have their turn."""
    ours, theirs, sink = UdpSocket(bound()), UdpSocket(bound()), Sink()
    theirs._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    theirs.register("udp", sink)
    burst = (b"\xa0" + bytes(999)) * 60
    for _ in range(3 * MAX_BATCH_BYTES // len(burst)):
        ours.send_burst(burst, 1000, ("127.0.0.1", theirs.address.port))
    await sink.until(60)
    assert len(sink.got) * 1000 <= MAX_BATCH_BYTES + len(burst)
    ours.close()
    theirs.close()
