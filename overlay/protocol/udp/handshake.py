"""The handshake: a cookie, then TLS inside HANDSHAKE packets, then keys for DATA packets.

    dialler                                                        acceptor
    KNOCK  ------------------------------------------------------>   keeps nothing
      <-------------------------------------------------  COOKIE     no longer than the KNOCK
    HANDSHAKE cookie, CRYPTO ClientHello ------------------------>   the address is proven: now there is state
      <---------------  HANDSHAKE ACK, CRYPTO ServerHello .. Finished
    the acceptor's key is proven
    HANDSHAKE ACK, CRYPTO Certificate .. Finished --------------->   the dialler's key is proven
    DATA -------------------------------------------------------->
      <------------------------------------------  HANDSHAKE ACK
      <----------------------------------------------  DATA DONE     both know that both know

TLS is injected. Each side exports the packet keys when it has verified the other: OpenSSL would let an acceptor do so
earlier. The dialler may send DATA at once; `opening` keeps what comes before the keys. TLS's tickets are dropped, as
nothing of ours resumes. Nothing goes to an unproven address but a COOKIE, which is shorter than what it answers.

**Strangers.** Who has not seen the handshake's packets can do nothing to it: packets that do not open, or make no sense
inside, are dropped whole. Who has seen them can end it with a forged packet, as in QUIC, until the peer's key is proven
and, on the dialler's side, until the acceptor has confirmed that it accepts ours. But no key is ever taken for proven
that was not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Generic

from overlay.protocol.codes import CloseCode
from overlay.protocol.udp.aead import SECRET_SIZE, Aead
from overlay.protocol.udp.cookie import knock, read_cookie
from overlay.protocol.udp.handshake_channel import Channel, probe_interval
from overlay.protocol.udp.handshake_packets import Bytes, Header, Seal
from overlay.protocol.udp.handshake_states import TRANSITIONS, Event, Exporter, HandshakeClosed, Peer, State, Tls
from overlay.protocol.udp.keys import EXPORT_LABEL, EXPORT_SIZE, Protection
from overlay.protocol.udp.payload import Close, encode_close
from overlay.protocol.udp.rtt import RoundTripTime
from overlay.protocol.udp.wire import COOKIE, MINIMUM_DATAGRAM

MAX_COOKIES: Final = 4
"""Cookies that a dialler tries side by side. An acceptor that starts anew gives another one; and who has seen our KNOCK
may send a false one, which must not keep the true one out."""


class Handshake(ABC, Generic[Peer]):
    """One side of one handshake. After each call on it send `datagrams_to_send` and look at `state`.

    Its deadline is the caller's. So are addresses: packets from another one than it began with are not handed to it.

    Args:
        own: our connection id; an attribute, too.
        tls: begins TLS; called when there is work for it.

    Attributes:
        state: how far it is.
        datagram_size: bytes, the longest datagram that the path is known to carry; 150 at least.
        peer: what TLS has proven, from PROVEN on.
        protection: seals and opens DATA packets, from PROVEN on.
        error: why it FAILED: what TLS raised, or HandshakeClosed.
        rtt: what is known of the path's round-trip time.
    """

    def __init__(self, own: bytes, tls: Callable[[], Tls[Peer]], state: State) -> None:
        self.state = state
        self.datagram_size = MINIMUM_DATAGRAM
        self.peer: Peer | None = None
        self.protection: Protection | None = None
        self.error: Exception | None = None
        self.rtt = RoundTripTime()
        self.own = own
        self._begin_tls = tls
        self._tls: Tls[Peer] | None = None
        self._channels: list[Channel] = []
        self._goodbye = b""
        self._goodbye_due = False
        self._after_goodbye = 0

    @property
    def heard(self) -> bool:
        """Whether a packet of the peer has opened. An acceptor that is made for a packet and has not heard is noise."""
        return any(channel.heard for channel in self._channels)

    def receive_datagram(self, datagram: Bytes, now: float) -> None:
        """One packet for our connection id; if it is not in order, it is as if it had not come."""
        if self.state is State.CONFIRMED:
            return
        events: list[bytes | Close] = []
        for channel in self._channels:
            if channel.receive_datagram(datagram, now, events):
                # Of the cookies that were tried, this is the one.
                self._channels = [channel]
                break
        else:
            return
        if self.state is State.FAILED:
            self._repeat_goodbye()
        for event in events:
            if isinstance(event, bytes):
                if self.state is State.SHAKING:
                    self._advance(event)
            elif self._believes_goodbye():
                self._fail(HandshakeClosed(event.code, event.reason, by_peer=True))

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """What is to be sent now, to the address that the handshake is with."""
        goodbye = b""
        if self.state is State.FAILED:
            if not self._goodbye_due:
                return []
            self._goodbye_due = False
            goodbye = self._goodbye
        size = self.datagram_size
        return [one for channel in self._channels for one in channel.datagrams_to_send(now, size, goodbye)]

    def next_timeout(self) -> float | None:
        """When to call `handle_timeout`; None when there is nothing to wait for."""
        if self.state is State.FAILED:
            return None
        return min((due for channel in self._channels if (due := channel.next_timeout()) is not None), default=None)

    def handle_timeout(self, now: float) -> None:
        """`next_timeout` has come; before it nothing happens."""
        if self.state is not State.FAILED:
            for channel in self._channels:
                channel.handle_timeout(now)

    def confirm(self) -> None:
        """The peer has shown in a DATA packet that it is done: by DONE, or by acknowledging ours."""
        self._enter(Event.CONFIRMED)
        self._channels = []
        # TLS costs tens of kilobytes for each connection, and has nothing more to say.
        self._tls = None

    def close(self, code: CloseCode) -> None:
        """Give up, and tell the peer, if it has heard of us. One that is CONFIRMED or FAILED stays what it is."""
        if self.state not in {State.CONFIRMED, State.FAILED}:
            self._fail(HandshakeClosed(code, by_peer=False), encode_close(code, ""))

    @abstractmethod
    def _believes_goodbye(self) -> bool:
        """Whether a CLOSE, which anybody who has seen the handshake's packets could forge, is believed."""

    @abstractmethod
    def _send_tls(self, data: bytes) -> None:
        """TLS wants these bytes to be sent."""

    @abstractmethod
    def _protect(self, remote: bytes, export: Callable[[bytes], bytes], aead: Aead) -> Protection:
        """Our side's packet protection, from what TLS exports for a context."""

    def _enter(self, event: Event) -> None:
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise RuntimeError(f"{event.name} cannot happen to a handshake that is {self.state.name}")
        self.state = following

    def _advance(self, data: bytes) -> None:
        tls = self._tls = self._tls or self._begin_tls()
        try:
            peer = tls.receive_data(data)
            if peer is not None:
                self._export(tls.ssl)
                self.peer = peer
                self._enter(Event.KEY_PROVEN)
        except Exception as error:  # noqa: BLE001 - whatever TLS makes of a stranger's bytes ends this handshake only
            # TLS's alert says why. Our own words might name whom we had dialled, and anybody can read this packet.
            self._send_tls(tls.data_to_send())
            self._fail(error, encode_close(getattr(error, "code", CloseCode.UNAUTHENTICATED), ""))
            return
        self._send_tls(tls.data_to_send())

    def _export(self, ssl: Exporter) -> None:
        def export(context: bytes) -> bytes:
            return ssl.export_keying_material(EXPORT_LABEL, EXPORT_SIZE, context)

        self.protection = self._protect(self._channels[0].remote, export, Aead.of_suite(ssl.get_cipher_name()))
        self.protection.probe_timeout = self.rtt.probe_timeout

    def _fail(self, error: Exception, goodbye: bytes = b"") -> None:
        self._enter(Event.FAILURE)
        self.error = error
        self.protection = None
        self._goodbye = goodbye
        self._goodbye_due = bool(goodbye)

    def _repeat_goodbye(self) -> None:
        """After the 1st, 2nd, 4th, 8th ... packet that comes all the same (RFC 9000 section 10.2.1)."""
        self._after_goodbye += 1
        if not self._after_goodbye & (self._after_goodbye - 1):
            self._goodbye_due = bool(self._goodbye)


class DiallerHandshake(Handshake[Peer]):
    """The side that dialled: knocks, and speaks first. The first `datagrams_to_send` begins it.

    Args:
        own: our connection id: 8 bytes that nobody can guess, new for each dial.
        tls: begins TLS as a dialler.
    """

    def __init__(self, own: bytes, tls: Callable[[], Tls[Peer]]) -> None:
        super().__init__(own, tls, State.KNOCKING)
        self._cookies: list[tuple[bytes, bytes]] = []
        self._hello = b""
        self._knock_due = True
        self._knocks = 0
        self._knocked_at = 0.0

    def receive_datagram(self, datagram: Bytes, now: float) -> None:
        """See `Handshake.receive_datagram`; a COOKIE, too."""
        if len(datagram) and datagram[0] == COOKIE:
            self._receive_cookie(datagram, now)
        else:
            super().receive_datagram(datagram, now)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """See `Handshake.datagrams_to_send`."""
        if self.state is not State.KNOCKING:
            return super().datagrams_to_send(now)
        if not self._knock_due:
            return []
        self._knock_due = False
        self._knocks += 1
        self._knocked_at = now
        return [knock(self.own)]

    def next_timeout(self) -> float | None:
        """See `Handshake.next_timeout`."""
        if self.state is not State.KNOCKING or self._knock_due:
            return super().next_timeout()
        return self._knocked_at + probe_interval(self.rtt, self._knocks - 1)

    def handle_timeout(self, now: float) -> None:
        """See `Handshake.handle_timeout`."""
        due = self.next_timeout()
        if self.state is State.KNOCKING:
            self._knock_due |= due is not None and now >= due
        else:
            super().handle_timeout(now)

    def _receive_cookie(self, datagram: Bytes, now: float) -> None:
        found = read_cookie(datagram, self.own)
        if found is None or found in self._cookies or len(self._cookies) >= MAX_COOKIES:
            return
        if self.state not in {State.KNOCKING, State.SHAKING} or self.heard:
            return
        if self._knocks == 1 and not self._cookies:
            # With a second KNOCK nobody would know which of them was answered (Karn's rule).
            self.rtt.update(now - self._knocked_at, 0.0)
        self._cookies.append(found)
        acceptor, cookie = found
        header = Header(acceptor, self.own, cookie)
        channel = Channel(Seal.of_dialler(self.own, acceptor, cookie), header, self.rtt)
        channel.write(self._hello)
        self._channels.append(channel)
        self._enter(Event.COOKIE)
        if self._tls is None:
            self._advance(b"")

    def _believes_goodbye(self) -> bool:
        # The acceptor judges our key after we have judged its own, and says so before there are keys in common.
        return self.state in {State.SHAKING, State.PROVEN}

    def _send_tls(self, data: bytes) -> None:
        self._hello = self._hello or data
        for channel in self._channels:
            channel.write(data)

    def _protect(self, remote: bytes, export: Callable[[bytes], bytes], aead: Aead) -> Protection:
        secrets = export(self.own + remote)
        return Protection(aead, secrets[:SECRET_SIZE], secrets[SECRET_SIZE:], remote)


class AcceptorHandshake(Handshake[Peer]):
    """The side that was dialled. Make one when a cookie is accepted, hand the packet over, keep it if it has `heard`.

    Args:
        header: of the first packet, with the cookie that was accepted.
        tls: begins TLS as an acceptor.
    """

    def __init__(self, header: Header, tls: Callable[[], Tls[Peer]]) -> None:
        super().__init__(header.destination, tls, State.SHAKING)
        seal = Seal.of_acceptor(header.source, header.destination, header.cookie)
        self._channels = [Channel(seal, Header(header.source, header.destination, b""), self.rtt)]

    def _believes_goodbye(self) -> bool:
        # With its key proven, a dialler has packet keys to say it with.
        return self.state is State.SHAKING

    def _send_tls(self, data: bytes) -> None:
        [channel] = self._channels
        if self.state is State.PROVEN:
            channel.settle()
        else:
            channel.write(data)

    def _protect(self, remote: bytes, export: Callable[[bytes], bytes], aead: Aead) -> Protection:
        secrets = export(remote + self.own)
        return Protection(aead, secrets[SECRET_SIZE:], secrets[:SECRET_SIZE], remote)
