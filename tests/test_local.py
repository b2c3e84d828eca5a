"""Which of our addresses go into a ticket."""

import socket
from types import SimpleNamespace

import psutil
import pytest

from overlay import Address
from overlay.local import reachable


def fake_interfaces(monkeypatch: pytest.MonkeyPatch, **interfaces: list[tuple[int, str]]) -> None:
    entries = {
        name: [SimpleNamespace(family=family, address=address) for family, address in found]
        for name, found in interfaces.items()
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)


def hosts(*addresses: str, interfaces: tuple[str, ...] = ()) -> list[str]:
    return [str(one) for one in reachable(map(Address.parse, addresses), interfaces)]


def test_a_wildcard_stands_for_every_interface_but_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Link-local addresses are left out too."""
    fake_interfaces(
        monkeypatch,
        lo=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")],
        eth0=[(socket.AF_INET, "192.0.2.5"), (socket.AF_INET6, "2001:db8::5"), (socket.AF_INET6, "fe80::1%eth0")],
    )
    assert hosts("0.0.0.0:9330", "[::]:9330") == ["192.0.2.5:9330", "[2001:db8::5]:9330"]


def test_loopback_is_named_when_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a network can still talk to itself."""
    fake_interfaces(monkeypatch, lo=[(socket.AF_INET, "127.0.0.1")])
    assert hosts("0.0.0.0:9330") == ["127.0.0.1:9330"]
    assert hosts("127.0.0.1:9330") == ["127.0.0.1:9330"]


def test_interfaces_that_are_not_wanted_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Config.interfaces` holds for tickets too."""
    fake_interfaces(monkeypatch, eth0=[(socket.AF_INET, "192.0.2.5")], wlan0=[(socket.AF_INET, "198.51.100.5")])
    assert hosts("0.0.0.0:9330", interfaces=("wlan0",)) == ["198.51.100.5:9330"]
