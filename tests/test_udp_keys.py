"""Packet protection: what opens, what does not, and how the two sides go through key updates together."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.codes import CloseCode
from overlay.protocol.frames import VARINT_MAX, ProtocolViolation
from overlay.protocol.udp.aead import SECRET_SIZE, Aead
from overlay.protocol.udp.keys import RETAINED, UPDATE_AFTER, AeadLimitReached, Protection
from overlay.protocol.udp.wire import DATA, DATA_HEADER, DATA_OVERHEAD, KEY_PHASE, MAXIMUM_DATAGRAM, full_number

ONE, OTHER = b"\1" * SECRET_SIZE, b"\2" * SECRET_SIZE
HERE, THERE = bytes(range(8)), bytes(range(8, 16))


def pair(aead: Aead = Aead.AES_128_GCM, update_after: int = UPDATE_AFTER) -> tuple[Protection, Protection]:
    return (
        Protection(aead, ONE, OTHER, THERE, update_after=update_after),
        Protection(aead, OTHER, ONE, HERE, update_after=update_after),
    )


def payloads(count: int, size: int = 100, last: int = 40) -> list[bytes]:
    return [bytes([number % 256]) * (size if number < count - 1 else last) for number in range(count)]


@pytest.fixture(params=Aead, ids=lambda aead: aead.name)
def both(request: pytest.FixtureRequest) -> tuple[Protection, Protection]:
    return pair(request.param)


def test_a_burst_opens_at_the_other_side(both: tuple[Protection, Protection]) -> None:
    one, other = both
    sent = payloads(46)
    burst = one.seal_burst(7, sent)
    assert len(burst) == sum(map(len, sent)) + 46 * DATA_OVERHEAD
    segment = 100 + DATA_OVERHEAD
    opened = other.open_burst(memoryview(bytearray(burst)), segment, -1, 0.0)
    assert opened == list(enumerate(sent, 7))
    largest = -1
    for start in range(0, len(burst), segment):
        result = other.open(burst[start : start + segment], largest, 0.0)
        assert result == opened[start // segment]
        largest += 1
    assert other.forged == 0


def test_the_header_is_that_of_the_wire(both: tuple[Protection, Protection]) -> None:
    one, _ = both
    packet = one.seal_burst(2**40 + 5, [b"payload"])
    assert DATA_HEADER.unpack_from(packet) == (DATA, THERE, 5)


def test_an_empty_burst_is_nothing(both: tuple[Protection, Protection]) -> None:
    one, other = both
    assert one.seal_burst(0, []) == b""
    assert other.open_burst(b"", 100, -1, 0.0) == []
    assert other.open(b"", -1, 0.0) is None


def test_what_we_sealed_does_not_open_here(both: tuple[Protection, Protection]) -> None:
    one, _ = both
    assert one.open(one.seal_burst(0, [b"payload"]), -1, 0.0) is None


def test_every_changed_bit_and_every_cut_is_noticed_and_counted(both: tuple[Protection, Protection]) -> None:
    one, other = both
    packet = one.seal_burst(0, [b"payload"])
    for bit in range(8 * len(packet)):
        changed = (int.from_bytes(packet, "big") ^ 1 << bit).to_bytes(len(packet), "big")
        assert other.open(changed, -1, 0.0) is None
    assert other.forged == 8 * len(packet)
    for size in range(len(packet)):
        assert other.open(packet[:size], -1, 0.0) is None
    assert other.open(packet + b"\0", -1, 0.0) is None
    assert other.open(packet, -1, 0.0) == (0, b"payload")


def test_a_forged_packet_in_a_burst_leaves_the_others_alone(both: tuple[Protection, Protection]) -> None:
    one, other = both
    burst = bytearray(one.seal_burst(0, payloads(5)))
    burst[3 * (100 + DATA_OVERHEAD) + 20] ^= 1
    assert [number for number, _ in other.open_burst(burst, 100 + DATA_OVERHEAD, -1, 0.0)] == [0, 1, 2, 4]


@given(st.integers(0, VARINT_MAX - 10), st.integers(-1, VARINT_MAX))
def test_no_packet_ever_opens_under_a_wrong_number(number: int, largest: int) -> None:
    """Whatever the receiver has; and near the right number it does open."""
    one, other = pair()
    result = other.open(one.seal_burst(number, [b"payload"]), largest, 0.0)
    assert result in {None, (number, b"payload")}
    if number - 2**31 < largest + 1 <= number + 2**31 and number < 2**61:
        assert result is not None


@given(st.integers(0, 2**61), st.integers(-(2**31) + 1, 2**31 - 1))
def test_numbers_are_completed_as_the_wire_says(expected: int, distance: int) -> None:
    number = expected + distance
    if number < 0:
        return
    one, other = pair()
    assert full_number(number & 0xFFFF_FFFF, expected - 1) == number
    assert other.open(one.seal_burst(number, [b"x"]), expected - 1, 0.0) == (number, b"x")


def test_a_number_is_never_used_twice(both: tuple[Protection, Protection]) -> None:
    one, _ = both
    one.seal_burst(5, [b"a", b"b"])
    for number in (0, 5, 6):
        with pytest.raises(ValueError, match="used up"):
            one.seal_burst(number, [b"c"])
    one.seal_burst(7, [b"c"])


def test_numbers_end() -> None:
    one, _ = pair()
    one.seal_burst(VARINT_MAX - 1, [b"last"])
    with pytest.raises(AeadLimitReached):
        one.seal_burst(VARINT_MAX, [b"beyond"])


def test_the_largest_datagram_passes(both: tuple[Protection, Protection]) -> None:
    one, other = both
    payload = bytes(MAXIMUM_DATAGRAM - DATA_OVERHEAD)
    assert other.open(one.seal_burst(0, [payload]), -1, 0.0) == (0, payload)


def test_a_changed_destination_is_in_the_header_and_keeps_the_phase(both: tuple[Protection, Protection]) -> None:
    one, other = both
    one.seal_burst(0, [b"x"])
    other.seal_burst(0, [b"ack"])
    one.receive_acknowledgement(0)
    one.update_keys()
    one.destination = b"another!"
    packet = one.seal_burst(1, [b"y"])
    assert packet[:9] == bytes([DATA | KEY_PHASE]) + b"another!"
    assert other.open(packet, 0, 0.0) == (1, b"y")


# --- key update


def test_an_update_needs_an_acknowledgement_and_the_next_one_another(both: tuple[Protection, Protection]) -> None:
    one, other = both
    with pytest.raises(RuntimeError):
        one.update_keys()
    one.seal_burst(0, [b"a", b"b"])
    assert not one.can_update
    one.receive_acknowledgement(1)
    one.update_keys()
    assert not one.can_update
    with pytest.raises(RuntimeError):
        one.update_keys()
    # An ACK of packets from before the update changes nothing.
    one.receive_acknowledgement(1)
    assert not one.can_update
    packet = one.seal_burst(2, [b"c"])
    other.seal_burst(0, [b"ack of 1"])
    one.receive_acknowledgement(1)
    assert not one.can_update
    assert other.open(packet, 1, 0.0) == (2, b"c")
    assert one.open(other.seal_burst(1, [b"ack of 2"]), -1, 0.0) == (1, b"ack of 2")
    one.receive_acknowledgement(2)
    one.update_keys()
    assert one.generation == 2


def test_an_acknowledgement_under_old_keys_does_not_get_us_two_ahead() -> None:
    """RFC 9001 section 6.2: whoever has seen the new keys answers with the new ones; this peer does not."""
    one, _ = pair()
    one.seal_burst(0, [b"a"])
    one.receive_acknowledgement(0)
    one.update_keys()
    one.seal_burst(1, [b"b"])
    one.receive_acknowledgement(1)
    assert not one.can_update


def test_who_receives_new_keys_answers_with_new_ones(both: tuple[Protection, Protection]) -> None:
    one, other = both
    first = one.seal_burst(0, [b"a"])
    answer = other.seal_burst(0, [b"ack"])
    assert one.open(answer, -1, 0.0)
    one.receive_acknowledgement(0)
    one.update_keys()
    second = one.seal_burst(1, [b"b"])
    assert second[0] == DATA | KEY_PHASE
    assert other.generation == 0
    assert other.open(second, 0, 0.0) == (1, b"b")
    assert other.generation == 1
    assert other.seal_burst(1, [b"ack"])[0] == DATA | KEY_PHASE
    assert other.open(first, 1, 0.0) == (0, b"a")


def test_who_was_updated_needs_an_acknowledgement_of_its_own_new_keys(both: tuple[Protection, Protection]) -> None:
    one, other = both
    one.seal_burst(0, [b"a"])
    other.seal_burst(0, [b"old keys"])
    one.receive_acknowledgement(0)
    one.update_keys()
    assert other.open(one.seal_burst(1, [b"b"]), 0, 0.0) == (1, b"b")
    other.receive_acknowledgement(0)
    other.seal_burst(1, [b"new keys"])
    other.receive_acknowledgement(0)
    assert not other.can_update
    other.receive_acknowledgement(1)
    assert other.can_update


def test_both_may_update_at_once(both: tuple[Protection, Protection]) -> None:
    one, other = both
    assert other.open(one.seal_burst(0, [b"a"]), -1, 0.0)
    assert one.open(other.seal_burst(0, [b"a"]), -1, 0.0)
    for side in both:
        side.receive_acknowledgement(0)
        side.update_keys()
    crossing = one.seal_burst(1, [b"b"]), other.seal_burst(1, [b"b"])
    assert other.open(crossing[0], 0, 0.0) == (1, b"b") == one.open(crossing[1], 0, 0.0)
    assert one.generation == other.generation == 1


def test_old_keys_are_kept_for_three_probe_timeouts_and_no_longer(both: tuple[Protection, Protection]) -> None:
    one, other = both
    other.probe_timeout = 0.2
    late = [one.seal_burst(number, [b"late"]) for number in range(3)]
    one.receive_acknowledgement(0)
    other.seal_burst(0, [b"ack"])
    one.update_keys()
    assert other.open(one.seal_burst(3, [b"new"]), -1, 10.0) == (3, b"new")
    assert other.open(late[0], 3, 10.0) == (0, b"late")
    assert other.open(late[1], 3, 10.0 + RETAINED * 0.2 - 0.001) == (1, b"late")
    assert other.open(late[2], 3, 10.0 + RETAINED * 0.2) is None
    assert other.open(one.seal_burst(4, [b"new"]), 3, 20.0) == (4, b"new")


def test_a_forged_phase_bit_commits_nothing(both: tuple[Protection, Protection]) -> None:
    one, other = both
    other.seal_burst(0, [b"x"])
    packet = bytearray(one.seal_burst(0, [b"a"]))
    packet[0] ^= KEY_PHASE
    assert other.open(packet, -1, 0.0) is None
    assert other.generation == 0
    packet[0] ^= KEY_PHASE
    assert other.open(packet, -1, 0.0) == (0, b"a")


def test_an_update_before_we_sent_anything_is_a_violation() -> None:
    """Nothing of the peer's can have been acknowledged."""
    one, other = pair()
    one.seal_burst(0, [b"a"])
    one.receive_acknowledgement(0)
    one.update_keys()
    packet = one.seal_burst(1, [b"b"])
    with pytest.raises(ProtocolViolation) as caught:
        other.open(packet, 0, 0.0)
    assert caught.value.code is CloseCode.STATE_ERROR


def test_an_update_is_found_in_the_middle_of_a_burst() -> None:
    """GRO may join what was sealed before and after it."""
    one, other = pair()
    other.seal_burst(0, [b"x"])
    before = one.seal_burst(0, payloads(5, last=100))
    one.receive_acknowledgement(0)
    one.update_keys()
    after = one.seal_burst(5, payloads(5))
    opened = other.open_burst(before + after, 100 + DATA_OVERHEAD, -1, 0.0)
    assert [number for number, _ in opened] == list(range(10))


@pytest.mark.parametrize("seed", range(10))
def test_keys_are_updated_under_load_in_both_directions_with_loss_and_reordering(seed: int) -> None:
    """Both sides update every 200 packets; packets are lost, overtaken by up to 50 others, and delivered twice."""
    chance = random.Random(seed)
    sides = pair(update_after=200)
    number, largest = [0, 0], [-1, -1]
    under_way: list[tuple[float, int, bytes, list[tuple[int, bytes]]]] = []
    got: list[set[int]] = [set(), set()]
    lost = 0
    for step in range(800):
        now = step * 0.01
        for at, to in ((0, 1), (1, 0)):
            sent = payloads(chance.randint(1, 8), size=50, last=50)
            burst = sides[at].seal_burst(number[at], sent)
            size = 50 + DATA_OVERHEAD
            for index, payload in enumerate(sent):
                packet = burst[index * size : (index + 1) * size]
                if chance.random() < 0.2:
                    lost += 1
                    continue
                for _ in range(1 + (chance.random() < 0.1)):
                    delay = chance.choice((0.0, 0.05, 0.1))
                    under_way.append((now + delay, to, packet, [(number[at] + index, payload)]))
            number[at] += len(sent)
        due = [entry for entry in under_way if entry[0] <= now]
        under_way = [entry for entry in under_way if entry[0] > now]
        chance.shuffle(due)
        for _, to, packet, expected in due:
            opened = sides[to].open(packet, largest[to], now)
            assert opened == expected[0]
            largest[to] = max(largest[to], opened[0])
            got[to].add(opened[0])
            # What was received is acknowledged in the next packet, which mostly arrives.
            if chance.random() < 0.5:
                acknowledgement = sides[to].seal_burst(number[to], [b"ack"])
                number[to] += 1
                answer = sides[1 - to].open(acknowledgement, largest[1 - to], now)
                assert answer is not None
                largest[1 - to] = max(largest[1 - to], answer[0])
                sides[1 - to].receive_acknowledgement(largest[to])
    assert lost > 500
    assert sides[0].forged == sides[1].forged == 0
    assert min(side.generation for side in sides) > 8
    assert abs(sides[0].generation - sides[1].generation) <= 1


# --- limits


def test_the_default_updates_well_before_the_limit() -> None:
    assert Aead.AES_128_GCM.confidentiality >= 2 * UPDATE_AFTER
    one, _ = pair(update_after=10**9)
    assert one._update_after <= UPDATE_AFTER


def test_keys_are_updated_as_soon_as_it_is_time_and_allowed() -> None:
    one, _ = pair(update_after=10)
    one.seal_burst(0, payloads(10))
    one.seal_burst(10, payloads(10))
    assert one.generation == 0
    one.receive_acknowledgement(0)
    one.seal_burst(20, [b"x"])
    assert one.generation == 1


def test_without_an_acknowledgement_nothing_is_sealed_beyond_the_limit() -> None:
    one, _ = pair()
    one.seal_burst(0, [b"x"])
    one._sealed = Aead.AES_128_GCM.confidentiality - 3
    one.seal_burst(1, [b"x"] * 3)
    for _ in range(2):
        with pytest.raises(AeadLimitReached):
            one.seal_burst(4, [b"x"])


@pytest.mark.parametrize("aead", Aead)
def test_too_many_forged_packets_end_the_connection_across_updates(aead: Aead) -> None:
    one, other = pair(aead)
    other.seal_burst(0, [b"x"])
    one.seal_burst(0, [b"x"])
    one.receive_acknowledgement(0)
    one.update_keys()
    other.forged = aead.integrity - 2
    garbage = bytes([DATA]) + bytes(50)
    assert other.open(garbage, -1, 0.0) is None
    assert other.open(one.seal_burst(1, [b"y"]), 0, 0.0) == (1, b"y")
    with pytest.raises(ProtocolViolation):
        other.open(garbage, 1, 0.0)


@given(st.binary(max_size=200), st.integers(1, 100))
def test_garbage_never_opens(data: bytes, segment: int) -> None:
    _, other = pair()
    assert other.open_burst(data, segment, -1, 0.0) == []
