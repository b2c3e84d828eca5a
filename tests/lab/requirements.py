"""What the lab needs of the machine, and what to do where it is missing."""

import os
import shutil
import sys
from pathlib import Path

PACKAGES = {
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nft": "nftables",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "tc": "iproute2",
}
"""Each tool, and the Debian package that brings it."""

TUN = Path("/dev/net/tun")


def missing() -> list[str]:
    """One line for each thing that is not there, each saying what to do; empty if the lab can run."""
    if sys.platform != "linux":
        return [f"the lab needs the network namespaces of Linux, this is {sys.platform}: run it in a virtual machine"]
    lines = [
        f"{tool} is missing: apt-get install {package} (and have /usr/sbin in PATH)"
        for tool, package in PACKAGES.items()
        if shutil.which(tool) is None
    ]
    if os.geteuid() != 0:
        lines.insert(0, "the lab makes network namespaces and needs root: run it with sudo")
    if not TUN.exists():
        lines.append(f"{TUN} is missing: modprobe tun, or start the container with --device {TUN}")
    return lines


if __name__ == "__main__":
    print("\n".join(missing()))  # noqa: T201 - for a script to read
    sys.exit(bool(missing()))
