"""The congestion window grows while it is used, and only then."""

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch

from overlay.transports.quic_congestion import ApplicationLimitedReno


def _packet(size: int, at: float) -> QuicSentPacket:
    return QuicSentPacket(
        epoch=Epoch.ONE_RTT,
        in_flight=True,
        is_ack_eliciting=True,
        is_crypto_packet=False,
        packet_number=0,
        packet_type=QuicPacketType.ONE_RTT,
        sent_time=at,
        sent_bytes=size,
    )


def _rounds(packets: int, rounds: int) -> int:
    control = ApplicationLimitedReno(max_datagram_size=1200)
    for number in range(1, rounds + 1):
        flight = [_packet(1200, number) for _ in range(packets)]
        for packet in flight:
            control.on_packet_sent(packet=packet)
        control.on_rtt_measurement(now=number + 0.5, rtt=0.5)
        for packet in flight:
            control.on_packet_acked(now=number + 0.5, packet=packet)
    return control.congestion_window


def test_the_window_grows_while_it_is_used() -> None:
    """Slow start, with an acknowledgement for each round."""
    assert _rounds(10, 1) == 2 * 12_000


def test_the_window_does_not_grow_while_it_is_idle() -> None:
    """RFC 9002 section 7.8: a trickle proves nothing about the path."""
    assert _rounds(1, 1000) <= 12_000 + 2 * 1200
    assert _rounds(20, 1000) < 60 * 1200


def test_only_an_acknowledgement_is_one() -> None:
    control = ApplicationLimitedReno(max_datagram_size=1200)
    first, probe = _packet(1200, 1.0), _packet(1200, 2.0)
    control.on_packet_sent(packet=first)
    control.on_packets_expired(packets=[first])
    control.on_packet_sent(packet=probe)
    assert control.last_acknowledged == 0.0
    control.on_packet_acked(now=2.1, packet=probe)
    assert control.last_acknowledged == 2.1
