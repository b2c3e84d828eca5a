"""Addresses and tickets: what reads back, what is canonical, what is refused and why."""

import contextlib
import copy
import itertools
import pickle
import socket
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.addresses import (
    MAX_TICKET_ADDRESSES,
    MAX_TICKET_CHARACTERS,
    SCHEMES,
    Address,
    Ticket,
)
from overlay.errors import AddressError
from overlay.identity import Identity, PeerId

PEER = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena"  # RFC 8032 section 7.1, test 1

schemes = st.none() | st.sampled_from(SCHEMES)
ports = st.integers(1, 65535)
zones = st.from_regex(r"[a-zA-Z][a-zA-Z0-9._-]{0,14}", fullmatch=True) | st.integers(1, 2**32 - 1).map(str)
link_locals = st.builds(lambda low, zone: f"fe80::{low:x}%{zone}", st.integers(1, 0xFFFF), zones)
labels = st.from_regex(r"[a-zA-Z]([a-zA-Z0-9]{0,20})", fullmatch=True) | st.sampled_from(
    ["bücher", "münchen", "例え", "παράδειγμα", "r3---sn-x", "a-b", "1"]
)
names = st.lists(labels, min_size=1, max_size=4).map(lambda parts: ".".join([*parts, "example"]))
hosts = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str) | link_locals | names
addresses = st.builds(Address, schemes, hosts, ports)


@given(addresses)
def test_every_address_reads_back_as_printed(address: Address) -> None:
    """Print, parse: the same object, hash and string; its parts are fixed points too."""
    again = Address.parse(str(address))
    assert again == address
    assert hash(again) == hash(address)
    assert str(again) == str(address)
    assert str(address).isascii()
    assert Address(address.transport, address.host, address.port) == address
    assert address.is_literal == (address.family in {4, 6})
    assert copy.copy(address) == pickle.loads(pickle.dumps(address)) == address


@given(st.lists(addresses, min_size=1, max_size=MAX_TICKET_ADDRESSES), st.sampled_from(["", " ", "\r\n\t"]))
def test_every_ticket_reads_back_as_printed(places: list[Address], around: str) -> None:
    """In its order, without repetitions, with white space around it."""
    ticket = Ticket(PeerId.parse(PEER), places)
    assert ticket.addresses == tuple(dict.fromkeys(places))
    again = Ticket.parse(around + str(ticket) + around)
    assert again == ticket
    assert hash(again) == hash(ticket)
    assert str(again) == str(ticket)


@given(st.lists(addresses, max_size=8))
def test_addresses_have_one_order(places: list[Address]) -> None:
    """Total, consistent with equality, with and without a transport or a zone."""
    ordered = sorted(places)
    backwards = places[::-1]
    assert ordered == sorted(backwards)
    for first, second in itertools.pairwise(ordered):
        assert first <= second
        assert (first == second) == (not first < second)


def test_an_address_has_no_order_with_other_things() -> None:
    """A TypeError, not a surprise."""
    with pytest.raises(TypeError):
        Address(None, "a.example", 1) < "b"  # noqa: B015


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("198.51.100.7:9330", "198.51.100.7:9330"),
        ("quic://[2001:db8::1]:9330", "quic://[2001:db8::1]:9330"),
        ("QUIC://[2001:0DB8:0:0:0:0:0:1]:9330", "quic://[2001:db8::1]:9330"),
        ("udp://[::1]:1", "udp://[::1]:1"),
        ("memory://a:65535", "memory://a:65535"),
        ("[::ffff:198.51.100.7]:9330", "198.51.100.7:9330"),
        ("[::ffff:c633:6407]:9330", "198.51.100.7:9330"),
        ("[64:ff9b::198.51.100.7]:9330", "[64:ff9b::c633:6407]:9330"),
        ("tcp://[FE80::1%Eth0]:9330", "tcp://[fe80::1%Eth0]:9330"),
        ("tcp://[fe80::1%2]:9330", "tcp://[fe80::1%2]:9330"),
        ("[fe80::1]:9330", "[fe80::1]:9330"),
        ("Host.Example:9330", "host.example:9330"),
        ("host.example.:9330", "host.example:9330"),
        ("localhost:9330", "localhost:9330"),
        ("bücher.example:9330", "xn--bcher-kva.example:9330"),
        ("BÜCHER.example:9330", "xn--bcher-kva.example:9330"),
        ("bu\u0308cher.example:9330", "xn--bcher-kva.example:9330"),
        ("xn--bcher-kva.example:9330", "xn--bcher-kva.example:9330"),
        ("XN--BCHER-KVA.example:9330", "xn--bcher-kva.example:9330"),
        ("faß.example:9330", "xn--fa-hia.example:9330"),
        ("例え。example:9330", "xn--r8jz45g.example:9330"),
        ("r3---sn-x.example:9330", "r3---sn-x.example:9330"),
        ("7.example:9330", "7.example:9330"),
        ("0xcafe.example:9330", "0xcafe.example:9330"),
    ],
)
def test_there_is_one_string_for_one_place(text: str, canonical: str) -> None:
    """Each spelling has its canonical form."""
    address = Address.parse(text)
    assert str(address) == canonical
    assert address == Address.parse(canonical)


ADDRESS_ERRORS = [
    # text, the part at fault, what the error says
    ("", "", "the host is missing"),
    (":9330", ":9330", "the host is missing"),
    ("quic://", "", "the host is missing"),
    ("quic://:9330", ":9330", "the host is missing"),
    ("[]:9330", "", "only an IPv6 address"),
    ("host.example", "host.example", "the port is missing"),
    ("host.example:", "host.example:", "the port is missing"),
    ("[2001:db8::1]", "[2001:db8::1]", "the port is missing"),
    ("[2001:db8::1]:", "[2001:db8::1]:", "the port is missing"),
    ("host:0", "0", "1 to 65535"),
    ("host:65536", "65536", "1 to 65535"),
    ("host:99999999999999", "99999999999999", "1 to 65535"),
    ("host:09330", "09330", "without zeros in front"),
    ("host:+9330", "+9330", "ASCII digits"),
    ("host:-1", "-1", "ASCII digits"),
    ("host:9_330", "9_330", "ASCII digits"),
    ("host: 9330", " 9330", "ASCII digits"),
    ("host:9330 ", "9330 ", "ASCII digits"),
    ("host:\uff19\uff13", "\uff19\uff13", "ASCII digits"),
    ("host:٩٣٣٠", "٩٣٣٠", "ASCII digits"),
    ("host:²", "²", "ASCII digits"),
    ("host:http", "http", "ASCII digits"),
    ("http://host:9330", "http", "unknown transport; known are quic, tcp, udp, memory"),
    ("://host:9330", "", "unknown transport"),
    ("quic ://host:9330", "quic ", "unknown transport"),
    ("quic://tcp://host:9330", "//host:9330", "nothing may follow"),
    ("quic:host:9330", "quic:host:9330", "must stand in brackets"),
    ("tcp://me@host:9330", "me@", "no user"),
    ("me:secret@host:9330", "me:secret@", "no user"),
    ("host:9330/path", "/path", "nothing may follow"),
    ("host:9330/", "/", "nothing may follow"),
    ("host:9330?a=b", "?a=b", "nothing may follow"),
    ("host:9330#a", "#a", "nothing may follow"),
    ("host\\x:9330", "\\x:9330", "nothing may follow"),
    ("2001:db8::1", "2001:db8::1", "must stand in brackets"),
    ("2001:db8::1:9330", "2001:db8::1:9330", "must stand in brackets"),
    ("::1", "::1", "must stand in brackets"),
    ("[2001:db8::1:9330", "[2001:db8::1:9330", "closing bracket"),
    ("[2001:db8::1]9330", "9330", "may follow the bracket"),
    ("[2001:db8::1]]:9330", "]:9330", "may follow the bracket"),
    ("[[2001:db8::1]]:9330", "]:9330", "may follow the bracket"),
    ("[[2001:db8::1]:9330", "[2001:db8::1", "no IPv6 address"),
    ("[2001:db8::g]:9330", "2001:db8::g", "no IPv6 address"),
    ("[1::2::3]:9330", "1::2::3", "no IPv6 address"),
    ("[::ffff:127.1]:9330", "::ffff:127.1", "no IPv6 address"),
    ("[198.51.100.7]:9330", "198.51.100.7", "only an IPv6 address"),
    ("[host.example]:9330", "host.example", "only an IPv6 address"),
    ("[2001:db8::1%eth0]:9330", "%eth0", "only a link-local"),
    ("[::ffff:169.254.0.1%eth0]:9330", "%eth0", "only a link-local"),
    ("[fe80::1%]:9330", "%", "a zone is"),
    ("[fe80::1%a b]:9330", "%a b", "a zone is"),
    ("[fe80::1%a%b]:9330", "%a%b", "a zone is"),
    ("[fe80::1%a,b]:9330", "%a,b", "a zone is"),
    ("[fe80::1%sixteencharacter]:9330", "%sixteencharacter", "a zone is"),
    ("[fe80::1%0]:9330", "%0", "an interface's number"),
    ("[fe80::1%007]:9330", "%007", "an interface's number"),
    ("[fe80::1%4294967296]:9330", "%4294967296", "an interface's number"),
    ("127.1:9330", "127.1", "looks like a number"),
    ("2130706433:9330", "2130706433", "looks like a number"),
    ("0x7f000001:9330", "0x7f000001", "looks like a number"),
    ("0177.0.0.1:9330", "0177.0.0.1", "looks like a number"),
    ("198.051.100.7:9330", "198.051.100.7", "looks like a number"),
    ("198.51.100.256:9330", "198.51.100.256", "looks like a number"),
    ("1.2.3.4.5:9330", "1.2.3.4.5", "looks like a number"),
    ("198.51.100.7.:9330", "198.51.100.7.", "looks like a number"),
    ("host.0x1F:9330", "host.0x1F", "looks like a number"),
    ("\uff11\uff12\uff17.0.0.1:9330", "\uff11\uff12\uff17.0.0.1", "looks like a number"),
    ("a..example:9330", "a..example", "a label"),
    (".example:9330", ".example", "a label"),
    (".:9330", ".", "a label"),
    ("host.example..:9330", "host.example..", "a label"),
    ("-a.example:9330", "-a", "1 to 63 letters"),
    ("a-.example:9330", "a-", "1 to 63 letters"),
    ("a_b.example:9330", "a_b", "1 to 63 letters"),
    ("a b.example:9330", "a b", "1 to 63 letters"),
    ("a%b.example:9330", "a%b", "1 to 63 letters"),
    ("a\n.example:9330", "a\n", "1 to 63 letters"),
    ("a\x00.example:9330", "a\x00", "1 to 63 letters"),
    (f"{'a' * 64}.example:9330", "a" * 64, "1 to 63 letters"),
    (f"{'a.' * 150}example:9330", f"{'a.' * 150}example", "at most 253"),
    ("xn--.example:9330", "xn--", "not a valid label"),
    ("xn--a.example:9330", "xn--a", "not a valid label"),
    ("xn--ls8h.example:9330", "xn--ls8h", "not a valid label"),
    ("\U0001f4a9.example:9330", "\U0001f4a9", "not a valid label"),
    ("a\ud800.example:9330", "a\ud800.example", "no valid name"),
    ("\u00ad:9330", "\u00ad", "a label"),
]


@pytest.mark.parametrize(("text", "part", "why"), ADDRESS_ERRORS)
def test_a_malformed_address_is_refused_by_the_part_at_fault(text: str, part: str, why: str) -> None:
    """In an error that holds the whole string too."""
    with pytest.raises(AddressError) as caught:
        Address.parse(text)
    assert caught.value.text == text
    assert caught.value.part == part
    assert why in caught.value.why
    assert repr(part) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part", "why"),
    [
        ("", "", "starts with 'overlay:'"),
        ("overlay", "overlay", "starts with 'overlay:'"),
        ("198.51.100.7:9330", "198.51.1", "starts with 'overlay:'"),
        (f"{PEER}@a:1", PEER[:8], "starts with 'overlay:'"),
        ("overlay:", "", "'@' and an address are missing"),
        (f"overlay:{PEER}", PEER, "'@' and an address are missing"),
        (f"overlay:{PEER}@", "", "the host is missing"),
        ("overlay:@a:1", "", "52 characters"),
        (f"overlay://{PEER}@a:1", f"//{PEER}", "52 characters"),
        (f"overlay:{PEER[:-1]}@a:1", PEER[:-1], "52 characters, not 51"),
        (f"overlay:{'1' + PEER[1:]}@a:1", "1" + PEER[1:], "'1' is not used"),
        (f"overlay:{'a' * 52}@a:1", "a" * 52, "small order"),
        (f"overlay:{PEER}@a:1,", "", "the host is missing"),
        (f"overlay:{PEER}@a:1,,b:1", "", "the host is missing"),
        (f"overlay:{PEER}@a:1, b:1", " b", "1 to 63 letters"),
        (f"overlay:{PEER}@a:1,b", "b", "the port is missing"),
        (f"overlay:{PEER}@a:1,127.1:2", "127.1", "looks like a number"),
        (f"overlay:{PEER}@a:1,b:0", "0", "1 to 65535"),
        (f"overlay:{PEER}@me@a:1", "me@", "no user"),
        (f"overlay:{PEER}@2001:db8::1:9330", "2001:db8::1:9330", "must stand in brackets"),
        (f"overlay:{PEER}@a:1,{'x' * 5000}", "x" * 80 + "…", "longer than any address"),
    ],
)
def test_a_malformed_ticket_is_refused_by_the_part_at_fault(text: str, part: str, why: str) -> None:
    """In an error that holds the whole string too."""
    with pytest.raises(AddressError) as caught:
        Ticket.parse(f" {text}\n")
    assert caught.value.text == text
    assert caught.value.part == part
    assert why in caught.value.why


def test_a_ticket_is_read_in_capitals_too() -> None:
    """As an alphanumeric QR code holds it."""
    text = f"overlay:{PEER}@quic://[2001:db8::1]:9330,host.example:1"
    assert str(Ticket.parse(text.upper())) == text


def test_the_largest_ticket_reads_back() -> None:
    """64 addresses of the longest kind; one more is refused, in both directions."""
    domain = ".".join(["a" * 61, "b" * 63, "c" * 63, "d" * 61])
    places = [Address("memory", f"{domain[:-2]}{number:02}x", 65535) for number in range(65)]
    largest = Ticket(PeerId.parse(PEER), places[:64])
    assert len(str(largest)) <= MAX_TICKET_CHARACTERS
    assert Ticket.parse(str(largest)) == largest
    with pytest.raises(AddressError, match="at most 64 addresses, not 65"):
        Ticket(largest.peer_id, places)
    short = ",".join(f"a{number}:1" for number in range(65))
    with pytest.raises(AddressError, match="at most 64 addresses") as caught:
        Ticket.parse(f"overlay:{PEER}@{short}")
    assert caught.value.part == "a64:1"


def test_a_ticket_without_an_address_is_refused() -> None:
    """It would say whom, but not where."""
    with pytest.raises(AddressError, match="at least one"):
        Ticket(PeerId.parse(PEER), [])


@pytest.mark.parametrize("parse", [Address.parse, Ticket.parse])
def test_endless_input_is_refused_unread_and_not_repeated(parse: type) -> None:
    """The error keeps the start only."""
    with pytest.raises(AddressError, match="longer than any") as caught:
        parse("ü" * 10_000_000)
    assert len(str(caught.value)) < 300
    assert len(caught.value.text) < 100


@pytest.mark.parametrize(
    ("transport", "host", "port", "part"),
    [
        ("http", "a", 1, "http"),
        ("QUIC", "a", 1, "QUIC"),
        ("quic", "", 1, ""),
        ("quic", "a", 0, "0"),
        ("quic", "a", -1, "-1"),
        ("quic", "a", 65536, "65536"),
        ("quic", "[::1]", 1, "[::1]"),
        ("quic", "ü" * 100_000, 1, "ü" * 80 + "…"),
    ],
)
def test_parts_are_checked_by_the_constructor_too(transport: str, host: str, port: int, part: str) -> None:
    """An address is canonical however it was made."""
    with pytest.raises(AddressError) as caught:
        Address(transport, host, port)
    assert caught.value.part == part


alphabet = st.sampled_from([*string.printable, *"[]:%@,./", "xn--", "quic://", "fe80::", "ü", "。", "\uff11", "\u200d"])
garbage = st.lists(alphabet, max_size=40).map("".join) | st.text(max_size=60)


@given(garbage)
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    """Never another exception; and what passes reads back."""
    with contextlib.suppress(AddressError):
        address = Address.parse(text)
        assert Address.parse(str(address)) == address


@given(st.lists(alphabet | st.characters(), min_size=1, max_size=12).map("".join))
def test_any_host_is_canonical_or_an_address_error(host: str) -> None:
    """Names, A-labels that are none, literals."""
    for candidate in (host, f"xn--{host}", f"[{host}]"):
        with contextlib.suppress(AddressError):
            address = Address.parse(f"{candidate}:1")
            assert Address.parse(str(address)) == address


@given(garbage | st.builds("overlay:{}@{}".format, st.just(PEER) | garbage, garbage))
def test_any_text_is_a_ticket_or_an_address_error(text: str) -> None:
    """Never another exception; and what passes reads back."""
    with contextlib.suppress(AddressError):
        ticket = Ticket.parse(text)
        assert Ticket.parse(str(ticket)) == ticket


@given(st.lists(addresses, min_size=1, max_size=3), st.data())
def test_a_mutated_ticket_is_a_ticket_or_an_address_error(places: list[Address], data: st.DataObject) -> None:
    """One character replaced, removed or added."""
    text = str(Ticket(PeerId.parse(PEER), places))
    position = data.draw(st.integers(0, len(text)))
    mutated = text[:position] + data.draw(alphabet | st.just("")) + text[position + data.draw(st.integers(0, 1)) :]
    with contextlib.suppress(AddressError):
        ticket = Ticket.parse(mutated)
        assert Ticket.parse(str(ticket)) == ticket


def test_a_socket_address_becomes_an_address_and_back() -> None:
    """IPv4, IPv6, IPv4-mapped, and link-local with its zone."""
    index, name = socket.if_nameindex()[0]
    for sockaddr, text, back in (
        (("198.51.100.7", 1), "tcp://198.51.100.7:1", ("198.51.100.7", 1)),
        (("2001:db8::1", 1, 0, 0), "tcp://[2001:db8::1]:1", ("2001:db8::1", 1, 0, 0)),
        (("2001:db8::1", 1, 7, index), "tcp://[2001:db8::1]:1", ("2001:db8::1", 1, 0, 0)),
        (("::ffff:198.51.100.7", 1, 0, 0), "tcp://198.51.100.7:1", ("198.51.100.7", 1)),
        (("fe80::1", 1, 0, index), f"tcp://[fe80::1%{name}]:1", ("fe80::1", 1, 0, index)),
        ((f"fe80::1%{name}", 1, 0, index), f"tcp://[fe80::1%{name}]:1", ("fe80::1", 1, 0, index)),
        (("fe80::1", 1, 0, 0), "tcp://[fe80::1]:1", ("fe80::1", 1, 0, 0)),
        (("fe80::1", 1, 0, 2**31), "tcp://[fe80::1%2147483648]:1", ("fe80::1", 1, 0, 2**31)),
    ):
        address = Address.from_sockaddr("tcp", sockaddr)
        assert str(address) == text
        assert address.sockaddr() == back


def test_a_real_socket_takes_what_sockaddr_returns() -> None:
    """Bound to the loopback address, and read back from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        address = Address.from_sockaddr("udp", bound.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.connect(address.sockaddr())
            assert Address.from_sockaddr("udp", other.getpeername()) == address


def test_the_port_zero_of_a_forged_datagram_is_an_address_error() -> None:
    """UDP lets a sender leave its port out."""
    with pytest.raises(AddressError, match="1 to 65535"):
        Address.from_sockaddr("udp", ("198.51.100.7", 0))


def test_a_name_has_no_socket_address() -> None:
    """It has to be resolved first."""
    with pytest.raises(AddressError, match="resolved"):
        Address.parse("host.example:1").sockaddr()


def test_the_zone_of_no_interface_is_an_os_error() -> None:
    """The cable may come back: the address as such is fine."""
    with pytest.raises(OSError):
        Address.parse("[fe80::1%nosuchinterface]:1").sockaddr()


def test_an_address_without_a_transport_takes_any() -> None:
    """One port, all transports."""
    address = Address.parse("host.example:9330")
    assert address.transport is None
    assert str(address.with_transport("quic")) == "quic://host.example:9330"
    assert address.with_transport("quic").with_transport(None) == address
    with pytest.raises(AddressError, match="unknown transport"):
        address.with_transport("http")


def test_an_address_knows_its_family() -> None:
    """4, 6, or a name."""
    assert [Address.parse(text).family for text in ("192.0.2.1:1", "[::1]:1", "a1.example:1")] == [4, 6, None]


def test_a_ticket_for_a_new_identity_can_be_pasted() -> None:
    """The form that the documentation shows."""
    peer = Identity.generate().peer_id
    ticket = Ticket(peer, (Address(None, "198.51.100.7", 9330), Address(None, "2001:db8::7", 9330)))
    assert str(ticket) == f"overlay:{peer}@198.51.100.7:9330,[2001:db8::7]:9330"
    assert Ticket.parse(str(ticket)).peer_id == peer
