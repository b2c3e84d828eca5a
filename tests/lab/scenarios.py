"""The matrix: networks that people really have, each with what is to be seen in it.

A scenario is data: a plan of the site, what is wrong with it, who dials, and what must come of it. The expected
failures are today's limits of what can be reached; whoever lifts one (port mapping, hole punching, a relay) turns its
`first` from nothing into the transport that gets through.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab.firewall import Firewall
from lab.impairment import Impairment
from lab.nat import Nat
from lab.topology import Plan, Side, Site
from lab.transfer import PORT, Step

KiB = 1024
MiB = 1024 * KiB

PLAIN = Plan()
ALL = ("quic://", "udp://", "tcp://")
SIDES: tuple[Side, Side] = ("a", "b")

QUIC_FLOWS = Firewall(
    "QUIC_FLOWS",
    "Every packet of QUIC is recognised, of connections that are there already too, by its bit 0x40 (RFC 9443).",
    ("udp length > 13 @th,65,1 1 drop",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row of the matrix.

    Attributes:
        name: what a person would call it.
        plan: of the site.
        wrong: is done to the site before anybody dials.
        dialler: who dials, and sends the file.
        first: the transports that the first path may have; none: no session comes about.
        then: transports that must carry a part of the file each, in this order, others between them or not.
        tried: beginnings of addresses that must stand among what was tried in vain: at the first path, or in the error.
        size, rate, port, steps, timeout, seconds: see `lab.transfer.transfer`.
    """

    name: str
    plan: Plan = PLAIN
    wrong: Callable[[Site], object] = lambda _: None
    dialler: Side = "a"
    first: tuple[str, ...] = ("quic",)
    then: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    size: int = 4 * MiB
    rate: str | None = None
    port: int = PORT
    steps: tuple[Step, ...] = ()
    timeout: float = 20.0
    seconds: float = 60.0

    @property
    def title(self) -> str:
        """The name, and who dials."""
        return f"{self.name}; {self.dialler} dials"


def scenarios() -> list[Scenario]:
    """All of them; each has a title of its own."""
    return [*_open(), *_translated(), *_filtered(), *_one_sided(), *_families(), *_sizes(), *_bad_lines(), *_changing()]


def unreachable(name: str, **options: Any) -> Scenario:
    """A network in which nobody gets in from outside: both transports are tried, and the error says so."""
    return Scenario(name=name, first=(), tried=ALL, timeout=2.0, **options)


def _open() -> Iterator[Scenario]:
    yield Scenario(name="open")
    yield Scenario(name="open", dialler="b")


def _translated() -> Iterator[Scenario]:
    for kind in Nat:
        nat = "NAT: " + kind.name.lower().replace("_", " ")
        yield Scenario(name=f"a behind a {nat}", plan=Plan(nat={"a": kind}))
        yield unreachable(f"a behind a {nat}", plan=Plan(nat={"a": kind}), dialler="b")
        yield unreachable(f"b behind a {nat}", plan=Plan(nat={"b": kind}))
        yield Scenario(name=f"b behind a {nat}", plan=Plan(nat={"b": kind}), dialler="b")
    both = Plan(nat={"a": Nat.PORT_RESTRICTED, "b": Nat.PORT_RESTRICTED})
    yield unreachable("both behind NATs", plan=both)
    yield unreachable("both behind NATs", plan=both, dialler="b")
    carrier = Plan(nat={"a": Nat.PORT_RESTRICTED}, carrier=Nat.SYMMETRIC)
    yield Scenario(name="a behind two NATs (CGNAT)", plan=carrier)
    yield unreachable("a behind two NATs (CGNAT)", plan=carrier, dialler="b")


def _filtered() -> Iterator[Scenario]:
    blocked = _internet(Firewall.UDP_BLOCKED)
    yield Scenario(name="all UDP blocked", wrong=blocked, first=("tcp",), tried=("quic://", "udp://"))
    for name, firewall in (
        ("QUIC recognised and dropped (v1 and v2)", Firewall.QUIC_RECOGNISED),
        ("any long header dropped", Firewall.LONG_HEADERS_BLOCKED),
        ("every packet of QUIC dropped", QUIC_FLOWS),
    ):
        yield Scenario(name=name, wrong=_internet(firewall), first=("udp",), tried=("quic://",))
    yield Scenario(
        name="all UDP blocked, 100 ms round trip",
        plan=_with("wan_b", impairment=Impairment(delay=0.05)),
        wrong=_internet(Firewall.UDP_BLOCKED),
        first=("tcp",),
        tried=("quic://",),
    )
    yield Scenario(name="TCP blocked", wrong=_internet(Firewall.TCP_BLOCKED))
    yield Scenario(name="TCP reset", wrong=_internet(Firewall.TCP_RESET))
    yield unreachable("UDP and TCP blocked", wrong=_internet(Firewall.UDP_BLOCKED, Firewall.TCP_BLOCKED))
    yield unreachable("only port 443 open, b listens elsewhere", wrong=_internet(Firewall.ONLY_PORT_443))
    yield Scenario(name="only port 443 open, b listens there", wrong=_internet(Firewall.ONLY_PORT_443), port=443)
    yield Scenario(
        name="only TCP to port 443 open, b listens there",
        wrong=_internet(Firewall.ONLY_TCP_443),
        port=443,
        first=("tcp",),
        tried=("quic://",),
    )


def _one_sided() -> Iterator[Scenario]:
    for side in SIDES:
        for dialler in SIDES:
            name = f"nothing inbound at {side}"
            if dialler == side:
                yield Scenario(name=name, wrong=_protect(side), dialler=dialler)
            else:
                yield unreachable(name, wrong=_protect(side), dialler=dialler)


def _families() -> Iterator[Scenario]:
    six, dual = Plan(families=(6,)), Plan(families=(4, 6))
    yield Scenario(name="IPv6 only", plan=six)
    yield Scenario(name="IPv6 only, all UDP blocked", plan=six, wrong=_internet(Firewall.UDP_BLOCKED), first=("tcp",))
    yield Scenario(name="IPv4 only at a, b has both", plan=dual, wrong=_without_ipv6, tried=("quic://[",))
    yield Scenario(name="IPv4 and IPv6", plan=dual)
    broken = _internet(Firewall.IPV6_BLACK_HOLE)
    yield Scenario(name="IPv6 advertised and black-holed", plan=dual, wrong=broken, tried=("quic://[",))
    yield Scenario(name="IPv4 advertised and black-holed", plan=dual, wrong=_internet(Firewall.IPV4_BLACK_HOLE))


def _sizes() -> Iterator[Scenario]:
    yield Scenario(name="MTU 1280 on the way", plan=_with("wan_b", mtu=1280))
    small = _with("wan_b", mtu=600)
    yield Scenario(name="MTU 600 on the way", plan=small, first=("udp",), tried=("quic://",))
    yield Scenario(name="MTU 600 at a itself", plan=_with("near_a", mtu=600), first=("udp",), tried=("quic://",))
    hole = _with("wan_b", mtu=1280)
    yield Scenario(name="PMTU black hole at 1280", plan=hole, wrong=_internet(Firewall.PMTU_BLACK_HOLE))
    yield Scenario(
        name="PMTU black hole at 1280, all UDP blocked",
        plan=hole,
        wrong=_internet(Firewall.PMTU_BLACK_HOLE, Firewall.UDP_BLOCKED),
        first=("tcp",),
    )


def _bad_lines() -> Iterator[Scenario]:
    yield Scenario(
        name="2 s round trip", plan=_with("wan_b", impairment=Impairment(delay=1.0)), size=256 * KiB, timeout=60.0
    )
    lossy = _with("wan_b", impairment=Impairment(delay=0.01, loss=0.3))
    either = ("quic", "tcp")
    yield Scenario(name="30 % loss each way", plan=lossy, first=either, size=64 * KiB, timeout=60.0, seconds=120.0)
    shaky = Impairment(
        delay=0.02, jitter=0.02, loss=0.01, reorder=0.05, duplicate=0.02, burst_start=0.002, burst_length=5
    )
    yield Scenario(
        name="jitter, reordering, duplicates, bursts of loss", plan=_with("wan_b", impairment=shaky), size=MiB
    )
    uneven = _with("wan_a", rate=(1e6, 10e6))
    yield Scenario(name="1 Mbit/s up and 10 down at a", plan=uneven, size=384 * KiB)
    yield Scenario(name="1 Mbit/s up and 10 down at a", plan=uneven, size=2 * MiB, dialler="b")


def _changing() -> Iterator[Scenario]:
    """Something happens under a transfer of 8 MiB at 2 MiB/s."""
    yield _under_way(
        "QUIC dropped, then all UDP, then TCP reset and UDP open again",
        (0.1, _internet(QUIC_FLOWS)),
        (0.4, _internet(Firewall.UDP_BLOCKED)),
        (0.6, _internet(Firewall.TCP_RESET)),
        then=("quic", "tcp", "quic"),
    )
    yield _under_way("UDP lost from a to b only", (0.2, _lose_udp_from_a), then=("quic", "tcp"))
    yield _under_way("UDP lost from b to a only", (0.2, _lose_udp_from_b), then=("quic", "tcp"))
    yield _under_way(
        "a NAT forgets, and gives another port",
        (0.3, lambda site: site.homes["a"].forget()),
        plan=Plan(nat={"a": Nat.PORT_RESTRICTED_REMAPPED}),
    )
    for transport, firewall in (("quic", Firewall.OPEN), ("tcp", Firewall.UDP_BLOCKED)):
        yield _under_way(
            f"the router at a restarts, over {transport}",
            (0.3, lambda site: site.homes["a"].restart()),
            plan=Plan(nat={"a": Nat.PORT_RESTRICTED}),
            wrong=_internet(firewall),
            first=(transport,),
        )
    behind = Plan(nat={"a": Nat.PORT_RESTRICTED})
    yield _under_way("a new WAN address at a", (0.3, lambda site: site.links["wan_a"].readdress()), plan=behind)
    yield _under_way("a itself has a new address", (0.3, lambda site: site.links["near_a"].readdress()))
    yield _under_way("b itself has a new address", (0.3, lambda site: site.links["near_b"].readdress()))
    yield _under_way("the link at a down for 20 s", (0.3, _unplug), seconds=120.0)
    yield _under_way(
        "the MTU falls to 1280 without a word, over tcp",
        (0.3, _shrink),
        wrong=_internet(Firewall.PMTU_BLACK_HOLE, Firewall.UDP_BLOCKED),
        first=("tcp",),
    )


def _under_way(name: str, *steps: Step, **options: Any) -> Scenario:
    return replace(Scenario(name=name, steps=steps, size=8 * MiB, rate="2M"), **options)


def _internet(*firewalls: Firewall) -> Callable[[Site], object]:
    return lambda site: site.internet.set_firewall(*firewalls)


def _protect(side: Side) -> Callable[[Site], object]:
    return lambda site: site.homes[side].set_firewall(Firewall.nothing_inbound(site.outside_interface(side)))


def _lose_udp_from_a(site: Site) -> None:
    _lose_udp(site, "a")


def _lose_udp_from_b(site: Site) -> None:
    _lose_udp(site, "b")


def _lose_udp(site: Site, side: Side) -> None:
    interface = site.links[f"wan_{side}"].interface(site.internet)
    rule = f'iifname "{interface}" meta l4proto udp drop'
    site.internet.set_firewall(Firewall("UDP_ONE_WAY", f"UDP from {side} vanishes.", (rule,)))


def _without_ipv6(site: Site) -> None:
    site.hosts["a"].sysctl("net/ipv6/conf/all/disable_ipv6", 1)


def _shrink(site: Site) -> None:
    link = site.links["wan_b"]
    for host in (link.lower, link.upper):
        host.ip(f"link set {link.interface(host)} mtu 1280")


def _unplug(site: Site) -> None:
    link = site.links["near_a"]
    link.down()
    # The scenario itself, not a wait for something: so long there is no network.
    time.sleep(20)
    link.up()


def _with(link: str, **options: Any) -> Plan:
    return Plan(links={link: options})
