"""The project about itself: names, tests for each module, and nothing of anybody's machine."""

import ast
import re
import subprocess
from pathlib import Path

import overlay

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "overlay"

TESTED_ELSEWHERE = {
    "__init__": "test_meta.py: it only names things",
    "errors": "wherever one is raised",
    "events": "test_endpoint.py",
    "metrics": "test_router.py: what Driver.metrics and Driver.status say",
    "neighbour": "test_router.py: one of a driver's",
    "peer": "test_session.py and test_failover.py: the shell of protocol/peer.py, which is test_peer_core.py's",
    "receiver": "test_router.py and test_router_hostile.py: what a driver receives",
    "status": "test_cli_peers.py: what is shown of a peer",
    "testing/__init__": "it only names things",
    "testing/router_ageing": "test_testing_router.py",
    "testing/router_routes": "test_testing_router.py",
    "testing/router_wire": "test_testing_router.py",
    "testing/fakes": "all tests of the shells: they are made of them",
    "protocol/__init__": "it is empty",
    "protocol/driver/__init__": "it only says what is where",
    "protocol/actions": "test_peer_core.py: what the core asks for",
    "protocol/codes": "wherever one is sent",
    "protocol/links": "test_peer_core.py: the connections of a peer",
    "protocol/outgoing": "test_session_core.py: one half of the session",
    "protocol/peer": "test_peer_core.py",
    "protocol/session": "test_session_core.py",
    "protocol/udp/__init__": "it is empty",
    "protocol/udp/handshake_states": "test_udp_handshake.py: the table of its states",
    "transports/__init__": "it is empty",
    "transports/base": "test_conformance.py",
    "transports/handshakes": "test_quic_hostile.py and test_udp.py: what both have in common",
    "transports/memory": "test_conformance.py",
    "transports/packet_transport": "test_quic.py and test_udp.py: what both are as transports",
    "transports/quic_connection": "test_quic.py",
    "transports/quic_handshakes": "test_quic_hostile.py",
    "transports/quic_transport": "test_quic.py",
    "transports/tcp_connection": "test_tcp.py",
    "transports/udp_driver": "test_udp.py",
    "transports/udp_handshakes": "test_udp.py",
    "transports/udp_routes": "test_udp.py",
}
"""Modules without a test file of their own name, and where their tests are."""


def modules() -> set[str]:
    names = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")}
    return {name for name in names if not name.startswith("cli/")}


def test_every_public_name_is_exported_and_nothing_else() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(overlay.__all__) == imported | {"__version__"}
    assert all(getattr(overlay, name) is not None for name in overlay.__all__)


def test_every_module_has_a_test_file() -> None:
    """`test_NAME.py`, or with its folder's name in front of it."""
    tests = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    missing = {
        name
        for name in modules()
        if not tests & {f"test_{Path(name).name}", f"test_{Path(name).parent.name}_{Path(name).name}"}
    }
    assert missing - set(TESTED_ELSEWHERE) == set()


def test_the_table_of_exceptions_is_no_longer_than_needed() -> None:
    assert set(TESTED_ELSEWHERE) <= modules()
    for why in TESTED_ELSEWHERE.values():
        for name in re.findall(r"\btest_\w+\.py", why):
            assert (ROOT / "tests" / name).exists()


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # The slashes are written as classes, so that this file does not name such places either.
    places = re.compile(r"(?<![\w.])[/](?:root|home/\w+|Users/\w+|work)[/]\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and (found := places.search(path.read_text(errors="replace"))):
            raise AssertionError(f"{name} names {found[0]!r}")
