"""Changes that do not happen, or that nobody notices, are errors: a scenario must not pass without its event."""

import re

import pytest

from lab import LabError, Nat, Network, Router
from lab.changes import outsides, readdress, rebind, restart
from lab.links import Link
from lab.probes import received, udp_socket
from lab.topology import Plan, Site
from lab.transfer import PORT

pytestmark = pytest.mark.lab

BEHIND_A_NAT = Plan(nat={"a": Nat.PORT_RESTRICTED_REMAPPED})


def test_the_outside_of_a_connection_is_the_address_and_port_that_others_see() -> None:
    with Network() as network:
        site = Site(network, BEHIND_A_NAT)
        a, b, home = site.hosts["a"], site.hosts["b"], site.homes["a"]
        assert outsides(home, "udp") == set()
        with udp_socket(a) as inside, udp_socket(b, PORT) as outside:
            inside.sendto(b"hello", (b.address(4), PORT))
            [(_, address, port, _)] = received([outside], 1)
        assert outsides(home, "udp") == {(address, str(port))}
        assert outsides(home, "tcp") == set()


def test_a_router_that_does_not_forget_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with Network() as network:
        site = Site(network, BEHIND_A_NAT)
        with pytest.raises(LabError, match="translates nothing of the transfer"):
            rebind(site)
        monkeypatch.setattr(Router, "restart", lambda _: None)
        with pytest.raises(LabError, match="home-a has forgotten nothing"):
            restart("quic")(site)


def test_an_address_that_stays_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "readdress", lambda link, family: link.address(link.lower, family))
    with Network() as network:
        site = Site(network, Plan())
        old = site.hosts["a"].address(4)
        with pytest.raises(LabError, match=re.escape(f"a still has its old address {old}")):
            readdress("near_a", "b")(site)


def test_a_change_that_no_packet_meets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is changed, and nobody uses it any more."""
    monkeypatch.setattr("lab.changes.MEETING_SECONDS", 0.1)
    with Network() as network:
        site = Site(network, BEHIND_A_NAT)
        with pytest.raises(LabError, match=r"waited 0\.1 s for the transfer to pass through home-a again"):
            restart("tcp")(site)
        with pytest.raises(LabError, match=r"waited 0\.1 s for b to hear from 198\.18\.\d\.3"):
            readdress("wan_a", "b")(site)
