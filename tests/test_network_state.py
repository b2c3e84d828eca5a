"""What counts as the network, and what does not: on made-up interfaces, and once on those of this machine."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import psutil
import pytest

from overlay import Address, network_state
from overlay.network_state import NetworkState

Route = Callable[[int, str | None], str | OSError]
"""By family and interface: from where a packet to the internet leaves, or why it does not."""


class Machine:
    """One whose interfaces, routes and flags of addresses the test sets."""

    def __init__(self) -> None:
        self.interfaces: dict[str, list[str]] = {}
        self.down: set[str] = set()
        self.route: Route = lambda family, interface: OSError(errno.ENETUNREACH, "no route")
        self.asked: list[tuple[int, int, int | bytes]] = []

    def entries(self) -> dict[str, list[SimpleNamespace]]:
        def family(address: str) -> int:
            return socket.AF_INET6 if ":" in address else socket.AF_INET

        hardware = SimpleNamespace(family=getattr(psutil, "AF_LINK", -1), address="02:fc:00:00:00:01")
        return {
            name: [hardware, *(SimpleNamespace(family=family(address), address=address) for address in addresses)]
            for name, addresses in self.interfaces.items()
        }

    def states(self) -> dict[str, SimpleNamespace]:
        names = {name.partition(":")[0] for name in self.interfaces}
        return {name: SimpleNamespace(isup=name not in self.down) for name in names}

    def socket(self, family: int, kind: int) -> "FakeSocket":
        assert kind == socket.SOCK_DGRAM, "anything else would send something"
        return FakeSocket(self, 6 if family == socket.AF_INET6 else 4)


class FakeSocket:
    def __init__(self, machine: Machine, family: int) -> None:
        self.machine = machine
        self.family = family
        self.interface: str | None = None
        self.name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self.machine.asked.append((level, option, value))
        if option == socket.SO_BINDTODEVICE and isinstance(value, bytes):
            self.interface = value.removesuffix(b"\0").decode()

    def connect(self, address: tuple[str, int]) -> None:
        found = self.machine.route(self.family, self.interface)
        if isinstance(found, OSError):
            raise found
        self.name = found

    def getsockname(self) -> tuple[str, int]:
        return self.name, 40_000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine = Machine()
    monkeypatch.setattr(psutil, "net_if_addrs", machine.entries)
    monkeypatch.setattr(psutil, "net_if_stats", machine.states)
    names = ("AF_INET", "AF_INET6", "SOCK_DGRAM", "SOL_SOCKET", "SO_MARK", "SO_BINDTODEVICE")
    fake = SimpleNamespace(socket=machine.socket, **{name: getattr(socket, name) for name in names})
    monkeypatch.setattr(network_state, "socket", fake)
    monkeypatch.setattr(network_state, "_ADDRESSES", tmp_path / "if_inet6")
    return machine


def test_addresses_are_those_of_interfaces_that_are_up_without_loopback(machine: Machine) -> None:
    """A router's own address on `lo` counts."""
    machine.interfaces = {
        "lo": ["127.0.0.1", "::1", "203.0.113.1"],
        "eth0": ["192.0.2.5", "2001:db8::5", "fe80::1%eth0"],
        "wlan0": ["198.51.100.5"],
    }
    machine.down = {"wlan0"}
    assert NetworkState.look().addresses == {"203.0.113.1", "192.0.2.5", "2001:db8::5", "fe80::1%eth0"}


def test_addresses_are_written_as_everywhere_else(machine: Machine) -> None:
    machine.interfaces = {"eth0": ["2001:DB8:0:0:0:0:0:5", "fe80:0::1%eth0"]}
    hosts = NetworkState.look().addresses
    assert hosts == {Address(None, host, 1).host for host in hosts} == {"2001:db8::5", "fe80::1%eth0"}


def test_only_the_wanted_interfaces_count(machine: Machine) -> None:
    machine.interfaces = {"eth0": ["192.0.2.5"], "wlan0": ["198.51.100.5"], "wg0": ["203.0.113.5"]}
    assert NetworkState.look(("wlan0", "wg0")).addresses == {"198.51.100.5", "203.0.113.5"}


def test_an_address_with_a_label_of_its_own_belongs_to_its_interface(machine: Machine) -> None:
    machine.interfaces = {"eth0": ["192.0.2.5"], "eth0:1": ["192.0.2.6"], "eth1": []}
    assert NetworkState.look(("eth0",)).addresses == {"192.0.2.5", "192.0.2.6"}
    machine.down = {"eth0"}
    assert NetworkState.look().addresses == frozenset()


def test_temporary_deprecated_and_unproven_ipv6_addresses_do_not_count(machine: Machine) -> None:
    """IFA_F_TEMPORARY, IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_DADFAILED; but IFA_F_NODAD and _PERMANENT do."""
    flags = {1: 0x01, 2: 0x20, 3: 0x40, 4: 0x08, 5: 0x82, 6: 0x00}
    machine.interfaces = {"eth0": [*(f"2001:db8::{number}" for number in flags), "fe80::7%eth0", "fe80::8%eth0"]}
    lines = [f"20010db800000000000000000000000{number} 02 40 00 {flag:02x}     eth0" for number, flag in flags.items()]
    lines += [
        "fe800000000000000000000000000007 02 40 20 c0     eth0",
        "fe800000000000000000000000000008 02 40 20 80     eth0",
        "fe800000000000000000000000000008 03 40 20 c0     eth1",
    ]
    network_state._ADDRESSES.write_text("\n".join(lines) + "\n")
    assert NetworkState.look().addresses == {"2001:db8::5", "2001:db8::6", "fe80::8%eth0"}


def test_the_default_source_of_each_family_is_that_of_a_packet_to_the_internet(machine: Machine) -> None:
    machine.route = lambda family, interface: "192.0.2.5" if family == 4 else "2001:db8::5"
    assert NetworkState.look().default == ("192.0.2.5", "2001:db8::5")


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL])
def test_without_a_route_there_is_no_default_source(machine: Machine, number: int) -> None:
    """The last three: routes of the kinds unreachable, prohibit and blackhole."""
    machine.route = lambda family, interface: "192.0.2.5" if family == 4 else OSError(number, "none")
    assert NetworkState.look().default == ("192.0.2.5", None)


def test_a_machine_that_has_run_out_of_descriptors_has_not_lost_its_network(machine: Machine) -> None:
    machine.route = lambda family, interface: OSError(errno.EMFILE, "too many open files")
    with pytest.raises(OSError, match="too many open files"):
        NetworkState.look()


def test_the_default_source_is_asked_for_as_our_sockets_send(machine: Machine) -> None:
    """Tied to the wanted interfaces, the first of them that has a route, and with the mark."""
    machine.route = lambda family, interface: (
        "198.51.100.5" if (family, interface) == (4, "wlan0") else OSError(errno.ENETUNREACH, "no route")
    )
    assert NetworkState.look().default == (None, None)
    assert not machine.asked
    assert NetworkState.look(("eth0", "wlan0"), fwmark=7).default == ("198.51.100.5", None)
    assert (socket.SOL_SOCKET, socket.SO_MARK, 7) in machine.asked


def test_a_change_says_what_came_what_went_and_from_where_packets_leave_now() -> None:
    before = NetworkState(frozenset({"192.0.2.5", "192.0.2.6"}), ("192.0.2.5", "2001:db8::5"))
    after = NetworkState(frozenset({"192.0.2.6", "192.0.2.7"}), ("192.0.2.7", None))
    change = after.change_since(before, 0.0)
    assert change is not None
    assert (change.gained, change.lost) == (frozenset({"192.0.2.7"}), frozenset({"192.0.2.5"}))
    assert (change.default, change.slept) == ({4: "192.0.2.7", 6: None}, 0.0)


def test_a_new_default_source_alone_is_a_change_and_so_is_sleep_but_nothing_is_none() -> None:
    both = frozenset({"192.0.2.5", "198.51.100.5"})
    before, after = NetworkState(both, ("192.0.2.5", None)), NetworkState(both, ("198.51.100.5", None))
    assert before.change_since(before, 0.0) is None
    for state, slept in ((after, 0.0), (before, 60.0)):
        change = state.change_since(before, slept)
        assert change is not None
        assert (change.gained, change.lost, change.slept) == (frozenset(), frozenset(), slept)


@pytest.mark.parametrize(
    ("default", "fingerprint"),
    [
        ((None, None), ""),
        (("192.0.2.5", None), "192.0.2.0/24"),
        (("192.0.2.77", "2001:db8:1:2:3:4:5:6"), "192.0.2.0/24 2001:db8:1:2::/64"),
        ((None, "fe80::1%eth0"), "fe80::/64"),
    ],
)
def test_the_fingerprint_is_of_the_network_and_not_of_the_address(
    default: tuple[str | None, str | None], fingerprint: str
) -> None:
    assert NetworkState(frozenset(), default).fingerprint == fingerprint


def test_this_machine_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever network it has, and whether /proc can be read or not."""
    state = NetworkState.look()
    assert not any(host.startswith(("127.", "::1")) for host in state.addresses)
    assert all(Address(None, host, 1).host == host for host in state.addresses)
    monkeypatch.setattr(network_state, "_ADDRESSES", Path("no such file"))
    assert NetworkState.look().addresses >= state.addresses
