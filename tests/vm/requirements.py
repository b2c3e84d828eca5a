"""What the guests need of the machine, and what to do where it is missing."""

import shutil
import sys
from pathlib import Path
from typing import Final

import lab

from vm.qemu import VIRTIOFSD

PACKAGES: Final = {
    "apt-get": "apt",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "linux.uml": "user-mode-linux",
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
    VIRTIOFSD: "qemu-system-common",
}
"""Each tool, and the package of Debian 12 that brings it."""


def missing() -> list[str]:
    """One line for each thing that is not there, each saying what to do; empty if the guests can run."""
    lines = lab.missing() + [
        f"{tool} is missing: apt-get install {package} (and have /usr/sbin in PATH)"
        for tool, package in PACKAGES.items()
        if shutil.which(tool) is None
    ]
    busybox = shutil.which("busybox")
    if busybox is not None and b"/ld-linux" in Path(busybox).read_bytes():
        lines.append(f"{busybox} needs libraries that an initramfs does not have: apt-get install busybox-static")
    return lines


if __name__ == "__main__":
    print("\n".join(missing()))  # noqa: T201 - for a script to read
    sys.exit(bool(missing()))
