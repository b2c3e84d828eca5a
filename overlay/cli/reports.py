"""Peers and events, told to programs and to people."""

from typing import Any, Final

from overlay.cli.output import clean, path_document
from overlay.events import Event, Path, PathChanged, PathLost, PeerConnected, PeerDisconnected, SessionReplaced
from overlay.status import AddressStatus, PeerStatus

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def event_document(event: Event) -> dict[str, Any]:
    """An event, for programs."""
    facts: dict[str, Any] = {}
    match event:
        case PeerConnected():
            name = "peer-connected"
        case PeerDisconnected(_, reason):
            facts = {"reason": clean(_first_line(reason)), "kind": type(reason).__name__}
            name = "peer-disconnected"
        case PathChanged(_, path):
            name, facts = "path-changed", {"path": _path_document(path)}
        case PathLost(_, transport, remote, remaining):
            name, facts = "path-lost", {"transport": transport, "remote": str(remote), "remaining": remaining}
        case SessionReplaced():
            name = "session-replaced"
    return {"event": name, "peer_id": str(event.peer_id), **facts}


def event_text(event: Event, name: str = "") -> str:
    """The same for people, in one line.

    Args:
        event: what has happened.
        name: what the user calls the peer; it stands beside its key.
    """
    peer = f"{event.peer_id.short} ({name})" if name else event.peer_id.short
    match event:
        case PeerConnected():
            return f"{peer} connected"
        case PeerDisconnected(_, reason):
            return f"{peer} disconnected: {_first_line(reason)}"
        case PathChanged(_, path):
            return f"{peer} now over {path}: {path.origin}"
        case PathLost(_, _, remote, remaining):
            return f"{peer} lost {remote}, " + (f"{remaining} left" if remaining else "no path is left")
        case SessionReplaced():
            return f"{peer} has begun anew: what was open is lost"


def peer_document(status: PeerStatus) -> dict[str, Any]:
    """A peer, for programs. Times are seconds: of addresses since 1970, of the peer from now."""
    return {
        "peer_id": str(status.peer_id),
        "name": status.name,
        "state": status.state,
        "kept": status.kept,
        "blocked": status.blocked,
        "since": None if status.since is None else round(status.since, 3),
        "next_dial": None if status.next_dial is None else round(status.next_dial, 3),
        "paths": [_path_document(path) for path in status.paths],
        "addresses": [_address_document(address) for address in status.addresses],
    }


def duration(seconds: float) -> str:
    """`3.2 s`, `12 min`, `5 h`, `9 d`: how long something takes or is ago."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0.0):.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _path_document(path: Path) -> dict[str, Any]:
    flags = {"selected": path.selected, "suspect": path.suspect, "dialled": path.dialled}
    return path_document(path) | flags | {"bytes_sent": path.bytes_sent, "bytes_received": path.bytes_received}


def _address_document(status: AddressStatus) -> dict[str, Any]:
    return {
        "address": str(status.address),
        "source": status.source,
        "learnt": status.learnt,
        "last_success": status.last_success,
        "last_failure": status.last_failure,
        "successes": status.successes,
        "failures": status.failures,
        "stage": status.stage,
        "rtt_ms": None if status.rtt is None else round(1000 * status.rtt, 3),
    }


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
