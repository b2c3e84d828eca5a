"""What the lab needs of the machine, and what to do where it is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nft": "nftables",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "tc": "iproute2",
    "unshare": "util-linux",
}
"""Each tool, and the Debian package that brings it."""

TUN = Path("/dev/net/tun")

TRIAL = ("unshare", "--mount", "--net", "ip", "link", "set", "lo", "up")
"""Root in a container may lack the right to do any of it, and the kernel alone knows: it is tried, in a child."""

SECONDS = 10.0
"""For the trial, which takes milliseconds."""


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
    elif not lines and (refusal := _refusal()):
        lines.append(f"this root may not make network namespaces ({refusal}): start the container with --privileged")
    if not TUN.exists():
        lines.append(f"{TUN} is missing: modprobe tun, or start the container with --device {TUN}")
    return lines


def _refusal() -> str:
    """Why this process may not make a namespace and change what is in it; nothing if it may."""
    trial = subprocess.run(
        TRIAL, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return " ".join(trial.stderr.split()) if trial.returncode != 0 else ""
