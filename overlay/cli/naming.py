"""How people name a peer: its key, the name that they gave it, or the beginning of its key."""

from collections.abc import Iterable
from typing import Final

from overlay import addresses
from overlay.addresses import Ticket
from overlay.cli.output import UsageError
from overlay.errors import AddressError
from overlay.identity import PEER_ID_CHARACTERS, PeerId
from overlay.status import PeerStatus

MAX_NAME_CHARACTERS: Final = 64
MIN_PREFIX_CHARACTERS: Final = 8
"""What `PeerId.short` shows. Whoever wants a key with such a beginning has to make 2^40 of them."""
MAX_SHOWN: Final = 5


def check_peer_name(name: str) -> str:
    """The name itself, if a peer may be called that; empty: it has none.

    Raises:
        UsageError: it is too long, not printable, or could be mistaken for a key.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        raise UsageError(f"a peer's name has at most {MAX_NAME_CHARACTERS} characters, not {len(name)}")
    if not name.isprintable() or name != name.strip():
        raise UsageError(f"{name!r}: a peer's name is one printable line without spaces at its ends")
    if _full_key(name) is not None:
        raise UsageError(f"{name!r}: a key cannot be the name of a peer")
    return name


def parse_target(text: str) -> Ticket | PeerId:
    """Read what somebody has pasted: white space at both ends is ignored; see `overlay.addresses.parse_target`."""
    return addresses.parse_target(text.strip())


def find_peer(text: str, peers: Iterable[PeerStatus], *, known: bool = True) -> PeerId:
    """The peer that somebody means.

    A full key is always itself. Names and beginnings of keys count alike: what fits two peers is refused.

    Args:
        text: a full key, a name, or at least 8 characters of a key.
        peers: all that there are.
        known: a full key has to be one of them, too.

    Raises:
        UsageError: no peer fits, or several do; the text names them.
    """
    key = _full_key(text)
    if key is not None and not known:
        return key
    prefix = text.lower() if len(text) >= MIN_PREFIX_CHARACTERS else None
    found = []
    for peer in peers:
        if peer.peer_id == key:
            return peer.peer_id
        if (text and peer.name == text) or (prefix is not None and str(peer.peer_id).startswith(prefix)):
            found.append(peer)
    if len(found) == 1:
        return found[0].peer_id
    if not found and len(text) == PEER_ID_CHARACTERS and key is None:
        raise UsageError(f"no peer fits {text!r}, and it is no key either: {_fault(text)}")
    if not found:
        raise UsageError(f"no peer fits {text!r}: give its key, its name, or 8 characters or more of its key")
    shown = ", ".join(f"{peer.peer_id} ({peer.name})" if peer.name else str(peer.peer_id) for peer in found[:MAX_SHOWN])
    more = f" and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    raise UsageError(f"{text!r} fits {len(found)} peers: {shown}{more}")


def _fault(text: str) -> str:
    """Why that is no key."""
    try:
        PeerId.parse(text)
    except AddressError as error:
        return error.why
    return ""


def _full_key(text: str) -> PeerId | None:
    if len(text) != PEER_ID_CHARACTERS:
        return None
    try:
        return PeerId.parse(text)
    except AddressError:
        # It may still be somebody's name.
        return None
