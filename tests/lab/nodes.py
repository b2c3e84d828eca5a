"""Hosts, and routers: hosts that pass on what is not for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from lab import firewall as firewalls
from lab import kernel
from lab import nat as nats
from lab.firewall import Firewall
from lab.links import Link, Subnet
from lab.nat import Nat
from lab.processes import Process

QUIET = (
    # Without these an IPv6 address is unusable for a second or two, and strangers may change the routes.
    ("net/ipv6/conf/{}/accept_dad", 0),
    ("net/ipv6/conf/{}/accept_ra", 0),
    ("net/ipv6/conf/{}/accept_redirects", 0),
    ("net/ipv4/conf/{}/accept_redirects", 0),
    ("net/ipv4/conf/{}/send_redirects", 0),
    # Asymmetric paths are what a lab is for.
    ("net/ipv4/conf/{}/rp_filter", 0),
    # Else deleting an old address takes the new one of the same subnet with it.
    ("net/ipv4/conf/{}/promote_secondaries", 1),
)
"""Parameters of each interface to come, `{}` standing for "all" and "default"."""


class Host:
    """A machine of its own, as far as the network goes.

    Attributes:
        name: unique in its network.
        namespace: the kernel's name of it, for `ip -n`.
        uplinks: the links of which it is the lower end, the first one first.
        downlinks: those of which it is the upper end.
        processes: all that were started in it.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self.namespace = namespace
        self.uplinks: list[Link] = []
        self.downlinks: list[Link] = []
        self.processes: list[Process] = []
        kernel.create(namespace)
        kernel.write_sysctls(
            namespace, ((key.format(which), value) for key, value in QUIET for which in ("all", "default"))
        )
        self.ip("link set lo up")

    @property
    def links(self) -> list[Link]:
        """All its links."""
        return [*self.uplinks, *self.downlinks]

    def address(self, family: int) -> str:
        """Its address on its first uplink, or on its first link if it is at the top.

        Args:
            family: 4 or 6.
        """
        if not self.links:
            raise kernel.LabError(f"{self.name} has no address yet: connect it by net.link first")
        return self.links[0].address(self, family)

    def inside(self) -> AbstractContextManager[None]:
        """Put the calling thread into the host; sockets made meanwhile stay there. Don't `await` inside."""
        return kernel.inside(self.namespace)

    def start(
        self, command: Sequence[str], *, name: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process in the host. The network ends it; it also ends with the thread that has started it.

        Args:
            command: the program and its arguments.
            name: in errors and reports; by default the host's name and the program's.
            environment: variables added to this process's own.
        """
        name = name or f"{self.name}: {command[0]}"
        process = Process(command, namespace=self.namespace, name=name, environment=environment)
        self.processes.append(process)
        return process

    def run(self, command: Sequence[str], *, text: str = "", timeout: float = kernel.SECONDS) -> str:
        """Run a short command in the host to its end, raise if it fails, and return its standard output."""
        return kernel.run(command, namespace=self.namespace, text=text, timeout=timeout)

    def reaches(self, address: str, *, timeout: int = 1) -> bool:
        """Whether one ping comes back, within these seconds."""
        command = ["ping", "-c", "1", "-W", str(timeout), address]
        seconds = timeout + kernel.SECONDS
        return "1 received" in kernel.run(command, namespace=self.namespace, check=False, timeout=seconds)

    def sysctl(self, name: str, value: int) -> None:
        """Set a parameter of the host's network: `host.sysctl("net/ipv4/tcp_ecn", 1)`."""
        kernel.write_sysctls(self.namespace, [(name, value)])

    def ip(self, *lines: str) -> None:
        """Run commands of ip(8), without the word `ip`."""
        kernel.run(["ip", "-batch", "-"], namespace=self.namespace, text="\n".join(lines) + "\n")

    def nft(self, script: str) -> None:
        """Apply a script of nft(8), all of it or nothing."""
        kernel.run(["nft", "-f", "-"], namespace=self.namespace, text=script)

    def subnets_below(self) -> Iterator[Subnet]:
        """What can be reached through its downlinks."""
        for link in self.downlinks:
            yield from link.subnets.values()
            yield from link.announced


class Router(Host):
    """A host that passes on what is not for it, through a firewall, and translating addresses if it is a NAT.

    Attributes:
        nat: which kind of translation of IPv4 addresses, if any.
    """

    def __init__(self, name: str, namespace: str, nat: Nat | None) -> None:
        super().__init__(name, namespace)
        self.nat = nat
        self._firewalls: tuple[Firewall, ...] = ()
        self.sysctl("net/ipv4/ip_forward", 1)
        self.sysctl("net/ipv6/conf/all/forwarding", 1)

    def set_firewall(self, *rule_sets: Firewall) -> None:
        """Replace the firewall, live and in one step: what passes must pass each of these; without any, all passes."""
        self._firewalls = rule_sets
        self.nft(firewalls.script(rule_sets))

    def translate(self) -> None:
        """Begin to translate, or begin anew, with the uplinks that there are now."""
        if self.nat is not None:
            self.nft(nats.script(self.nat, [link.interface(self) for link in self.uplinks]))

    def forget(self) -> None:
        """Forget all connections and mappings: a NAT rebinding.

        A kind that keeps ports gives the same one again: `PORT_RESTRICTED_REMAPPED` and `SYMMETRIC` give another.
        """
        # In this order: a cone would learn an old mapping again from a connection that is still there.
        self.run(["conntrack", "-F"])
        self.translate()

    def restart(self) -> None:
        """A power cut: all links go down, connections and mappings are forgotten, and everything comes back."""
        links = [link for link in self.links if link.is_up]
        for link in links:
            link.down()
        self.forget()
        self.set_firewall(*self._firewalls)
        for link in links:
            link.up()
