"""The guests of these tests, and their consoles in the report of one that fails."""

import functools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Host, Network

import vm

CACHE = "OVERLAY_VM_CACHE"
"""Environment variable: a directory in which the kernel's package stays between runs; by default it does not."""


def qemu(directory: Path) -> Callable[[str, int, Host], vm.Guest]:
    cache = Path(os.environ.get(CACHE) or directory / "cache")
    return functools.partial(vm.Qemu, image=vm.image(cache, directory))


def user_mode_linux(directory: Path) -> Callable[[str, int, Host], vm.Guest]:
    return vm.UserModeLinux


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(qemu, id="qemu", marks=pytest.mark.vm("qemu")),
        pytest.param(user_mode_linux, id="user-mode-linux", marks=pytest.mark.vm("user-mode-linux")),
    ],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[vm.Pair]:
    with Network() as network:
        pair = vm.Pair(network, request.param(tmp_path_factory.mktemp("vm")))
        try:
            pair.boot()
            yield pair
        finally:
            pair.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    arguments: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed and "pair" in arguments:
        pair: vm.Pair = arguments["pair"]
        consoles = (pair.alice.console, pair.bob.console)
        report.sections += [("a machine's console", console.report()) for console in consoles]
    return report
