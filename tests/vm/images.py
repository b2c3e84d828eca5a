"""What QEMU boots: Debian's own kernel for clouds, and an initramfs that finds the root file system.

Neither is installed: the package is downloaded into a cache directory, and what is needed is taken out of it. The
kernel has virtio as modules, so the initramfs holds those, busybox, and a script that loads them and hands over.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from lab import LabError

META_PACKAGE: Final = "linux-image-cloud-amd64"
"""Depends on the distribution's newest kernel. None is named here: older ones vanish from the archive."""
SECONDS: Final = 120.0
"""For each step; the download is 27 MB."""

MODULES: Final = (
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "fs/fuse/fuse.ko",
    "fs/fuse/virtiofs.ko",
    "net/sched/sch_netem.ko",
)
"""In the order in which they need each other."""

INIT: Final = """#!/busybox sh
set -e
for module in {modules}; do /busybox insmod /$module; done
/busybox mount -t virtiofs -o ro root /host
/busybox mount -t devtmpfs devtmpfs /host/dev
exec /busybox switch_root /host "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """What `-kernel` and `-initrd` take."""

    kernel: Path
    initramfs: Path


def image(cache: Path, directory: Path) -> Image:
    """Make an image.

    Args:
        cache: where the package stays between runs, which may be simultaneous.
        directory: where the image goes.

    Raises:
        LabError: a step failed; it says which.
    """
    package = _package(cache)
    made = Image(directory / "vmlinuz", directory / "initramfs")
    with TemporaryDirectory(dir=directory) as name:
        unpacked = Path(name, "package")
        _run(["dpkg-deb", "--extract", str(package), str(unpacked)])
        [kernel] = unpacked.glob("boot/vmlinuz-*")
        shutil.move(kernel, made.kernel)
        [modules] = unpacked.glob("lib/modules/*/kernel")
        tree = Path(name, "initramfs")
        _fill(tree, modules)
        listing = _run(["find", "."], cwd=tree)
        made.initramfs.write_bytes(_run(["busybox", "cpio", "-o", "-H", "newc"], cwd=tree, given=listing))
    return made


def _package(cache: Path) -> Path:
    """The kernel's package, downloaded unless it is in the cache."""
    depends = _run(["apt-cache", "depends", "--important", META_PACKAGE]).decode()
    names = [word for word in depends.split() if word.startswith("linux-image-") and word != META_PACKAGE]
    if not names:
        raise LabError(f"apt knows no kernel {META_PACKAGE}: run apt-get update, on Debian 12")
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob(f"{names[0]}_*.deb"))
    if not found:
        with TemporaryDirectory(dir=cache) as directory:
            # Its own user could not write into a directory of ours.
            _run(["apt-get", "--quiet", "--option=APT::Sandbox::User=root", "download", names[0]], cwd=Path(directory))
            [downloaded] = Path(directory).iterdir()
            # In one step, so that nobody finds half a package.
            found = [downloaded.rename(cache / downloaded.name)]
    return found[-1]


def _fill(tree: Path, modules: Path) -> None:
    """Lay out the initramfs."""
    (tree / "host").mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LabError("busybox is missing: apt-get install busybox-static")
    shutil.copy(busybox, tree / "busybox")
    for module in MODULES:
        if not (modules / module).exists():
            raise LabError(f"the kernel in {modules} has no module {module}: the list in images.py is of Debian 12")
        shutil.copy(modules / module, tree)
    init = tree / "init"
    init.write_text(INIT.format(modules=" ".join(Path(module).name for module in MODULES)), encoding="utf-8")
    init.chmod(0o755)


def _run(command: Sequence[str], *, cwd: Path | None = None, given: bytes = b"") -> bytes:
    """Run a tool to its end; its output."""
    try:
        return subprocess.run(command, cwd=cwd, input=given, capture_output=True, check=True, timeout=SECONDS).stdout
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        hint = "; run apt-get update" if command[0].startswith("apt") else ""
        raise LabError(f"{' '.join(command)} failed: {said}{hint}") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)} did not end within {SECONDS:.0f} s") from error
