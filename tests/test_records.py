"""Peer records: one encoding, signed, and whatever else comes is refused with its kind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.addresses import Address
from overlay.errors import RecordError
from overlay.identity import Identity
from overlay.records import MAX_RECORD_ADDRESSES, MAX_RECORD_BYTES, PREFIX, PeerRecord

IDENTITY = Identity.generate()
ADDRESSES = tuple(map(Address.parse, ("quic://[2001:db8::1]:9330", "198.51.100.7:9330", "tcp://host.example:1")))
RECORD = PeerRecord.make(IDENTITY, ADDRESSES, 7)
DATA = RECORD.encode()
HEAD = 1 + 32 + 8 + 64


def signed(text: bytes, sequence: int = 7, prefix: bytes = PREFIX) -> bytes:
    """What the key's owner can make if it does not play by the rules."""
    raw = IDENTITY.peer_id.raw
    body = raw + sequence.to_bytes(8, "big")
    return b"\x01" + body + IDENTITY.private_key.sign(prefix + body + text) + text


def refusal(data: bytes) -> str:
    with pytest.raises(RecordError) as caught:
        PeerRecord.decode(data)
    assert str(caught.value)
    return caught.value.kind


def test_what_is_made_is_read_back() -> None:
    assert PeerRecord.decode(DATA) == RECORD
    assert (RECORD.peer_id, RECORD.sequence, RECORD.addresses) == (IDENTITY.peer_id, 7, ADDRESSES)


def test_the_encoding_is_as_written_down() -> None:
    text = b"quic://[2001:db8::1]:9330,198.51.100.7:9330,tcp://host.example:1"
    assert signed(text) == DATA


def test_repeated_addresses_are_left_out() -> None:
    assert PeerRecord.make(IDENTITY, (*ADDRESSES, *ADDRESSES), 7) == RECORD


@given(position=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_changed_by_others(position: int, bit: int) -> None:
    data = bytearray(DATA)
    data[position] ^= 1 << bit
    # Another version is unknown, and half of all keys are no point of the curve.
    allowed = {"garbage"} if not position else {"garbage", "forged"} if position < 33 else {"forged"}
    assert refusal(bytes(data)) in allowed


@given(length=st.integers(0, len(DATA) - 1))
def test_no_part_of_it_is_a_record(length: int) -> None:
    assert refusal(DATA[:length]) == ("garbage" if length <= HEAD else "forged")


@given(data=st.binary(max_size=2 * MAX_RECORD_BYTES))
def test_garbage_is_refused(data: bytes) -> None:
    kind = refusal(data)
    assert (kind == "oversized") is (len(data) > MAX_RECORD_BYTES)


@given(text=st.text(max_size=60).map("!{}".format) | st.sampled_from(["", ",", "198.51.100.7:9330,", "198.51.100.7"]))
def test_garbage_that_its_owner_has_signed_is_refused(text: str) -> None:
    # No address has an exclamation mark in front.
    assert refusal(signed(text.encode())) == "garbage"


@pytest.mark.parametrize(
    "text",
    [
        b"198.51.100.7:9330,198.51.100.7:9330",
        b"QUIC://198.51.100.7:9330",
        b"[::ffff:198.51.100.7]:9330",
        b"[2001:DB8::1]:9330",
        b"Host.example:1",
        b"host.example.:1",
        b"[fe80::1%eth0]:9330",
        b"\xff:1",
    ],
)
def test_another_spelling_is_refused_even_when_signed(text: bytes) -> None:
    assert refusal(signed(text)) == "garbage"


def test_a_signature_for_another_purpose_does_not_count() -> None:
    assert refusal(signed(b"198.51.100.7:9330", prefix=b"")) == "forged"
    assert refusal(signed(b"198.51.100.7:9330", prefix=b"overlay peer record 2\0")) == "forged"


def test_the_signature_of_another_key_does_not_count() -> None:
    other = Identity.generate().peer_id.raw
    assert refusal(DATA[:1] + other + DATA[33:]) == "forged"


def test_a_key_that_is_none_is_garbage() -> None:
    assert refusal(DATA[:1] + bytes(32) + DATA[33:]) == "garbage"


def test_another_version_is_garbage() -> None:
    assert refusal(b"\x02" + DATA[1:]) == "garbage"


def test_sequence_zero_is_no_record() -> None:
    assert refusal(signed(b"198.51.100.7:9330", sequence=0)) == "garbage"
    for sequence in (0, -1, 2**64):
        with pytest.raises(RecordError, match="sequence"):
            PeerRecord.make(IDENTITY, ADDRESSES, sequence)


def test_too_many_addresses_or_bytes_are_refused_on_both_sides() -> None:
    many = [Address(None, "198.51.100.7", port) for port in range(1, MAX_RECORD_ADDRESSES + 2)]
    assert len(PeerRecord.decode(PeerRecord.make(IDENTITY, many[:-1], 1).encode()).addresses) == MAX_RECORD_ADDRESSES
    assert refusal(signed(",".join(map(str, many)).encode())) == "oversized"
    long = [Address("quic", ".".join([f"a{number:02}", *["b" * 60] * 4]), 9330) for number in range(20)]
    assert refusal(signed(",".join(map(str, long)).encode())) == "oversized"
    for addresses in (many, long):
        with pytest.raises(RecordError) as caught:
            PeerRecord.make(IDENTITY, addresses, 1)
        assert caught.value.kind == "oversized"


def test_no_address_is_no_record() -> None:
    with pytest.raises(RecordError, match="no address"):
        PeerRecord.make(IDENTITY, (), 1)


def test_link_local_addresses_are_not_for_others() -> None:
    with pytest.raises(RecordError, match="link-local"):
        PeerRecord.make(IDENTITY, [Address(None, "fe80::1%eth0", 9330)], 1)
