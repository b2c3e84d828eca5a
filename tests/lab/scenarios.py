"""The matrix: networks that people really have, each with what is to be seen in it.

A scenario is data: a plan of the site, what is wrong with it, who dials, and what must come of it. The expected
failures are today's limits of what can be reached; whoever lifts one (port mapping, hole punching, a relay) turns its
`first` from nothing into the transport that gets through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lab.changes import lose_udp, readdress, rebind, restart, shrink, unplug
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
        first: the transports that the first path may have; none: no session comes about. If it is one alone, then those
            that are preferred to it must have been tried before, in vain, by the rules of the race.
        then: transports that must carry a part of the file each, in this order, others between them or not.
        purposes: of a later path, one of these; none: there need not be a later path.
        tried: beginnings of addresses that must stand among what was tried in vain: at the first path, or in the error.
        stall_at_least: seconds for which nothing was delivered, at the longest.
        size, rate, port, steps, timeout, seconds: see `lab.transfer.transfer`.
    """

    name: str
    plan: Plan = PLAIN
    wrong: Callable[[Site], object] = lambda _: None
    dialler: Side = "a"
    first: tuple[str, ...] = ("quic",)
    then: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    stall_at_least: float = 0.0
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
    """A network in which nobody gets in from outside: all transports are tried, and the error says so."""
    return Scenario(name=name, first=(), tried=ALL, timeout=2.0, **options)


def both_ways(**options: Any) -> Iterator[Scenario]:
    """A scenario that is not the same from both sides: each of them dials once."""
    for dialler in SIDES:
        yield Scenario(dialler=dialler, **options)


def _open() -> Iterator[Scenario]:
    yield from both_ways(name="open")


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
    yield Scenario(name="all UDP blocked", wrong=_internet(Firewall.UDP_BLOCKED), first=("tcp",))
    for name, firewall in (
        ("QUIC recognised and dropped (v1 and v2)", Firewall.QUIC_RECOGNISED),
        ("any long header dropped", Firewall.LONG_HEADERS_BLOCKED),
        ("every packet of QUIC dropped", QUIC_FLOWS),
    ):
        yield Scenario(name=name, wrong=_internet(firewall), first=("udp",))
    yield Scenario(
        name="every packet of QUIC dropped, TCP blocked",
        wrong=_internet(QUIC_FLOWS, Firewall.TCP_BLOCKED),
        first=("udp",),
    )
    yield Scenario(
        name="every packet of QUIC dropped, 100 ms round trip",
        plan=_with("wan_b", impairment=Impairment(delay=0.05)),
        wrong=_internet(QUIC_FLOWS),
        first=("udp",),
    )
    yield Scenario(
        name="all UDP blocked, 100 ms round trip",
        plan=_with("wan_b", impairment=Impairment(delay=0.05)),
        wrong=_internet(Firewall.UDP_BLOCKED),
        first=("tcp",),
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
    # b's ticket still has the IPv6 address that a had once.
    yield Scenario(name="IPv4 only at a, b has both", plan=dual, wrong=_without_ipv6, tried=("quic://[",))
    yield Scenario(name="IPv4 only at a, b has both", plan=dual, wrong=_without_ipv6, dialler="b", tried=("quic://[",))
    yield Scenario(name="IPv4 and IPv6", plan=dual)
    broken = _internet(Firewall.IPV6_BLACK_HOLE)
    yield Scenario(name="IPv6 advertised and black-holed", plan=dual, wrong=broken, tried=("quic://[",))
    yield Scenario(name="IPv4 advertised and black-holed", plan=dual, wrong=_internet(Firewall.IPV4_BLACK_HOLE))


def _sizes() -> Iterator[Scenario]:
    hole = _with("wan_b", mtu=1280)
    yield from both_ways(name="MTU 1280 on the way", plan=hole)
    yield from both_ways(name="MTU 600 on the way", plan=_with("wan_b", mtu=600), first=("udp",))
    yield from both_ways(name="MTU 600 at a itself", plan=_with("near_a", mtu=600), first=("udp",))
    yield from both_ways(name="MTU 300 on the way, 10 MB", plan=_with("wan_b", mtu=300), first=("udp",), size=10**7)
    silent = _nobody_tells()
    yield from both_ways(name="PMTU black hole at 600", plan=_with("wan_b", mtu=600), wrong=silent, first=("udp",))
    yield from both_ways(name="PMTU black hole at 1280", plan=hole, wrong=_nobody_tells())
    yield from both_ways(name="PMTU black hole at 1400", plan=_with("wan_b", mtu=1400), wrong=_nobody_tells())
    without_udp = _nobody_tells(Firewall.UDP_BLOCKED)
    name = "PMTU black hole at 1280, all UDP blocked"
    yield from both_ways(name=name, plan=hole, wrong=without_udp, first=("tcp",))
    from_a = _internet(Firewall.PMTU_BLACK_HOLE, Firewall.UDP_BLOCKED)
    name = "PMTU black hole at 1280 from a to b only, all UDP blocked"
    yield from both_ways(name=name, plan=hole, wrong=from_a, first=("tcp",))


def _bad_lines() -> Iterator[Scenario]:
    yield Scenario(
        name="2 s round trip", plan=_with("wan_b", impairment=Impairment(delay=1.0)), size=256 * KiB, timeout=60.0
    )
    lossy = _with("wan_b", impairment=Impairment(delay=0.01, loss=0.3))
    either = ("quic", "udp", "tcp")
    yield Scenario(name="30 % loss each way", plan=lossy, first=either, size=64 * KiB, timeout=60.0, seconds=120.0)
    shaky = Impairment(
        delay=0.02, jitter=0.02, loss=0.01, reorder=0.05, duplicate=0.02, burst_start=0.002, burst_length=5
    )
    yield Scenario(
        name="jitter, reordering, duplicates, bursts of loss", plan=_with("wan_b", impairment=shaky), size=MiB
    )
    yield Scenario(
        name="the same, every packet of QUIC dropped",
        plan=_with("wan_b", impairment=shaky),
        wrong=_internet(QUIC_FLOWS),
        first=("udp", "tcp"),
        size=MiB,
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
        then=("quic", "udp", "tcp", "quic"),
        purposes=("replace",),
    )
    for transport, firewall in (("quic", Firewall.OPEN), ("udp", QUIC_FLOWS)):
        for side, other in (SIDES, SIDES[::-1]):
            yield _under_way(
                f"UDP lost from {side} to {other} only, over {transport}",
                (0.2, lose_udp(side, firewall)),
                wrong=_internet(firewall),
                first=(transport,),
                then=(transport, "tcp"),
                purposes=("replace",),
            )
    behind = Plan(nat={"a": Nat.PORT_RESTRICTED})
    remapped = Plan(nat={"a": Nat.PORT_RESTRICTED_REMAPPED})
    for transport, firewall in (("quic", Firewall.OPEN), ("udp", QUIC_FLOWS), ("tcp", Firewall.UDP_BLOCKED)):
        over = {"wrong": _internet(firewall), "first": (transport,)}
        yield _under_way(f"the router at a restarts, over {transport}", (0.3, restart(transport)), plan=behind, **over)
        # TCP cannot move, and who is dialled cannot migrate QUIC: there, a new path is made.
        again: dict[str, tuple[str, ...]] = {"tcp": ("replace",)}
        step = (0.3, readdress("near_a", "b"))
        name = f"a itself has a new address, over {transport}"
        yield _under_way(name, step, purposes=again.get(transport, ()), **over)
        if transport == "tcp":
            # And b could not be found again: of who has dialled it over TCP, it does not know where they listen.
            continue
        again = {"quic": ("inbound", "replace")}
        step = (0.3, readdress("near_b", "a"))
        name = f"b itself has a new address, over {transport}"
        yield _under_way(name, step, purposes=again.get(transport, ()), **over)
        yield _under_way(
            f"a NAT forgets, and gives another port, over {transport}", (0.3, rebind), plan=remapped, **over
        )
        yield _under_way(
            f"a new WAN address at a, over {transport}", (0.3, readdress("wan_a", "b")), plan=behind, **over
        )
    for dialler in SIDES:
        yield _under_way(
            "the link at a down for 20 s", (0.3, unplug(20)), dialler=dialler, stall_at_least=15.0, seconds=120.0
        )
        yield _under_way(
            "the MTU falls to 1280 without a word, over tcp",
            (0.3, shrink),
            dialler=dialler,
            wrong=_nobody_tells(Firewall.UDP_BLOCKED),
            first=("tcp",),
            purposes=("replace", "inbound"),
        )
        yield _under_way(
            "the MTU falls to 1280 without a word, over quic",
            (0.3, shrink),
            dialler=dialler,
            wrong=_nobody_tells(Firewall.TCP_BLOCKED),
        )
        yield _under_way(
            "the MTU falls to 1280 without a word, over udp",
            (0.3, shrink),
            dialler=dialler,
            wrong=_nobody_tells(QUIC_FLOWS, Firewall.TCP_BLOCKED),
            first=("udp",),
        )


def _under_way(name: str, *steps: Step, **options: Any) -> Scenario:
    return replace(Scenario(name=name, steps=steps, size=8 * MiB, rate="2M"), **options)


def _internet(*firewalls: Firewall) -> Callable[[Site], object]:
    return lambda site: site.internet.set_firewall(*firewalls)


def _nobody_tells(*firewalls: Firewall) -> Callable[[Site], object]:
    """Neither end of the small link says that a packet is too big for it; beside that, the internet has firewalls."""

    def wrong(site: Site) -> None:
        site.internet.set_firewall(Firewall.PMTU_BLACK_HOLE, *firewalls)
        site.homes["b"].set_firewall(Firewall.PMTU_BLACK_HOLE)

    return wrong


def _protect(side: Side) -> Callable[[Site], object]:
    return lambda site: site.homes[side].set_firewall(Firewall.nothing_inbound(site.outside_interface(side)))


def _without_ipv6(site: Site) -> None:
    site.hosts["a"].sysctl("net/ipv6/conf/all/disable_ipv6", 1)


def _with(link: str, **options: Any) -> Plan:
    return Plan(links={link: options})
