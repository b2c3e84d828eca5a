"""Everything about one peer: which session, over which connections. Pure.

A connection begins with the dialler's HELLO and the acceptor's ACCEPT; `judgement` has the table of what becomes of it.
After ACCEPT both sides report with WINDOWs what they have received, closed by SYNC, and continue from there. The same
follows on another connection when one is lost or silent; a SYNC is answered by FIN, RESET and STOP of all streams where
they are not acknowledged. Until an acceptor has read SYNC it sends at most 64 KiB of stream bytes, as does a dialler
until ACCEPT: on QUIC they may overtake the frame that the other side waits for, and are held there.

Feed it with `connection_made`, `receive`, `connection_lost`, `handle_timeout`; carry out `take_actions` in order; send
`frames_to_send` of each connection, and of the selected one the session's frames and bytes too.
"""

from collections.abc import Callable, Container

from overlay.protocol.actions import (
    Action,
    Answered,
    Attached,
    CloseConnection,
    Ended,
    Ending,
    Lingering,
    PeerSettings,
    Recovered,
    Suspected,
)
from overlay.protocol.budget import Budget, SessionLimits
from overlay.protocol.codes import ENDS_SESSION, CloseCode
from overlay.protocol.frames import (
    VARINT_MAX,
    Accept,
    Event,
    Gone,
    Hello,
    Ping,
    Pong,
    ProtocolViolation,
    Retire,
    StreamData,
    Sync,
    Window,
    encode,
)
from overlay.protocol.judgement import UNKNOWN, Judgement, accept_for, hello_for, judge
from overlay.protocol.keepalive import Keepalive
from overlay.protocol.links import ACTIVE, DRAIN_TIMEOUT, VERDICT_TIMEOUT, Link, Links, Phase, SessionState
from overlay.protocol.liveness import Liveness, Progress, Verdict
from overlay.protocol.outgoing import Chunk
from overlay.protocol.session import SessionCore, SessionEvent


class PeerCore:
    """The relation with one peer.

    Args:
        local: our PeerId's bytes.
        remote: the peer's.
        process: our process's random number.
        random: draws a random integer of 64 bits.
        grant: makes the limits and the budget of a new session, None when there is no memory for it; its argument
            tells whether we chose the peer.
        settings: times.
    """

    def __init__(
        self,
        local: bytes,
        remote: bytes,
        *,
        process: int,
        random: Callable[[], int],
        grant: Callable[[bool], tuple[SessionLimits, Budget] | None],
        settings: PeerSettings,
    ) -> None:
        self.session: SessionState | None = None
        self._smaller = local < remote
        self._process = process
        self._random = random
        self._grant = grant
        self._settings = settings
        self._linger = int(min(settings.linger * 1000, VARINT_MAX))
        self._links = Links(smaller=self._smaller)
        self.takes_datagrams = self._links.takes_datagrams
        self._dials = 0
        self._keepalives: dict[str, Keepalive] = {}  # by transport: what NATs bear outlives a connection
        self._actions: list[Action] = []
        self._draining = False
        self._verdicts_due = False

    # ---------------------------------------------------------------- state

    @property
    def idle(self) -> bool:
        """Neither a session nor a connection: nothing is lost by forgetting this object."""
        return self.session is None and not self._links.all

    @property
    def selected(self) -> int | None:
        """The connection to send the session's frames and bytes on."""
        link = self._links.selected
        return None if link is None else link.id

    @property
    def attached(self) -> list[int]:
        """Connections that carry the session, draining ones too."""
        return [link.id for link in self._links.all.values() if link.phase in ACTIVE]

    def is_suspect(self, connection: int) -> bool:
        """Whether that connection is silent."""
        return (link := self._links.all.get(connection)) is not None and link.suspect

    # ---------------------------------------------------------------- commands

    def begin(self, *, early: bool = False) -> SessionState | None:
        """The session to dial for: the present one or a new one; None when there is no memory for it."""
        if self.session is None:
            self.session = self._new_session(chosen=True)
        if self.session is not None and early:
            self.session.early = True
            self._links.reselect(self.session)
        return self.session

    def close_session(
        self, session: SessionState, now: float, *, code: CloseCode = CloseCode.SESSION_CLOSED, reason: str = ""
    ) -> None:
        """End it now, on purpose: its connections are closed with `code`, one of `ENDS_SESSION`."""
        if session is not self.session:
            return
        link = self._links.selected
        if link is not None and link.phase in ACTIVE:
            # What was received is acknowledged: the peer may wait for that before it closes, too.
            session.core.handle_timeout(float("inf"))
            link.frames += session.core.control_to_send(link.id)
        self._end(Ending.CLOSED_BY_US, now, close=code, code=code, reason=reason)
        self._judge_again(now)

    def ping(self, now: float, connection: int | None = None) -> int | None:
        """Ask the peer on that connection, or the selected one; the nonce, or None when there is none to ask on."""
        link = self._links.selected if connection is None else self._links.all.get(connection)
        if link is None or link.phase not in ACTIVE:
            return None
        return link.ping(self._random(), now)

    def check(self, now: float, stranded: Container[int] = ()) -> None:
        """In another network: ask on every connection whether it works; those in `stranded` are suspect at once."""
        self._keepalives.clear()
        for link in self._links.carrying(self.session):
            link.ping(self._random(), now)
            if link.id in stranded and link.liveness is not None:
                link.liveness.strand(now)
                self._check(link, now)

    # ---------------------------------------------------------------- inputs

    def connection_made(
        self,
        connection: int,
        *,
        kind: tuple[str, int],
        rank: int,
        dialled_by_us: bool,
        watch: Callable[[], Progress],
        now: float,
    ) -> None:
        """A connection to the proven peer is there. One that we dialled belongs to the session of `begin`.

        When that is over, the connection is closed: a dial that is late must not begin what nobody asked for.
        """
        phase = Phase.AWAIT_ACCEPT if dialled_by_us else Phase.AWAIT_HELLO
        link = Link(connection, kind, rank, dialled_by_us, watch, phase)
        self._links.all[connection] = link
        if not dialled_by_us:
            link.deadline = now + self._settings.handshake_timeout
            if self._links.crowded:
                self._close(link, CloseCode.BUSY, "too many connections", now)
            return
        if (session := self.session) is None:
            self._close(link, CloseCode.LOST_RACE, "the session that it was dialled for is over", now)
            return
        self._dials += 1
        link.dial = self._dials
        link.session = session
        link.acknowledged = session.core.acknowledged_offsets()
        hello = hello_for(session, process=self._process, linger=self._linger, dial=link.dial)
        link.frames.append(encode(hello))
        self._links.reselect(self.session)

    def receive(self, connection: int, event: Event, now: float) -> None:
        """A frame or a piece of a stream arrived; a violation closes the connection that brought it."""
        link = self._links.all.get(connection)
        if link is None or link.phase is Phase.CLOSED:
            return
        if link.liveness is not None and link.liveness.suspect and link.liveness.heard():
            self._recovered(link)
        try:
            self._receive(link, event, now)
        except ProtocolViolation as violation:
            self._close(link, violation.code, violation.reason, now)
        if self._draining and isinstance(event, Window | Gone):
            # Nothing else acknowledges.
            self._settle(now)
        if self._verdicts_due:
            self._judge_again(now)

    def receive_stream(self, connection: int, stream: int, offset: int, data: bytes, now: float) -> None:
        """The same for a piece of a stream, by the short way."""
        link = self._links.all.get(connection)
        if link is None or link.phase is not Phase.ATTACHED or link.liveness is None:
            self.receive(connection, StreamData(stream, offset, data), now)
            return
        if link.liveness.suspect and link.liveness.heard():
            self._recovered(link)
        try:
            if link.session is not None and link.session is self.session:
                link.session.core.receive_stream(stream, offset, data, now, link.watch)
        except ProtocolViolation as violation:
            self._close(link, violation.code, violation.reason, now)

    def connection_lost(self, connection: int, now: float, *, code: int = 0, reason: str = "", by_peer: bool) -> None:
        """A connection ended, by whatever cause; the core forgets it."""
        link = self._links.all.pop(connection, None)
        if link is None:
            return
        session, was = link.session, link.phase
        link.phase = Phase.CLOSED
        self._verdicts_due = True
        if session is not None and session is self.session and was is not Phase.CLOSED:
            self._lost(link, session, was, now, code=code, reason=reason, by_peer=by_peer)
        self._judge_again(now)

    def _lost(
        self, link: Link, session: SessionState, was: Phase, now: float, *, code: int, reason: str, by_peer: bool
    ) -> None:
        if by_peer and code in ENDS_SESSION and was in ACTIVE:
            self._end(Ending.CLOSED_BY_PEER, now, close=CloseCode.SESSION_CLOSED, code=code, reason=reason)
            return
        self._leave(link, session, now)
        if not by_peer or not session.connected or self._links.answering(session):
            return
        if code in {CloseCode.SESSION_GONE, CloseCode.RESTARTED}:
            why = Ending.RESTARTED if code == CloseCode.RESTARTED else Ending.GONE
            self._end(why, now, close=CloseCode.SESSION_GONE, code=code, reason=reason)
        elif code in {CloseCode.DUPLICATE_IDENTITY, CloseCode.REFUSED} and was is Phase.AWAIT_ACCEPT:
            self._end(Ending.REFUSED, now, close=CloseCode.SESSION_GONE, code=code, reason=reason)

    def handle_timeout(self, now: float) -> None:
        """Act on every deadline that has passed."""
        for link in tuple(self._links.all.values()):
            if link.deadline is not None and now >= link.deadline:
                self._deadline(link, now)
            if link.liveness is not None and now >= link.liveness.next_timeout:
                self._check(link, now)
        if self._draining:
            self._settle(now)
        if (session := self.session) is not None:
            session.core.handle_timeout(now)
            if session.linger_until is not None and now >= session.linger_until:
                self._end(Ending.EXPIRED, now, close=CloseCode.SESSION_GONE)
        self._judge_again(now)

    def update(self, now: float) -> None:
        """Tell each connection's watch what is outstanding; call it after sending."""
        if self.session is not None:
            for link in self._links.carrying(self.session):
                link.update(self.session.core.in_flight(link.id), now)

    # ---------------------------------------------------------------- outputs

    def next_timeout(self) -> float | None:
        """The next deadline."""
        deadlines = [self._links.next_timeout()]
        if self.session is not None:
            deadlines += (self.session.linger_until, self.session.core.next_timeout())
        return min((at for at in deadlines if at is not None), default=None)

    def take_actions(self) -> list[Action]:
        """What the shell has to do and to tell, in order, since the last call."""
        actions, self._actions = self._actions, []
        return actions

    def frames_to_send(self, connection: int) -> list[bytes]:
        """Encoded frames for that very connection, and for the selected one the session's, too."""
        link = self._links.all.get(connection)
        if link is None:
            return []
        frames, link.frames = link.frames, []
        if link is self._links.selected and link.session is not None and link.session.core.has_control:
            frames += link.session.core.control_to_send(link.id)
        link.spoke = link.spoke or bool(frames)
        return frames

    def data_to_send(self, connection: int, size: int) -> Chunk | None:
        """The next piece of stream data for that connection."""
        link = self._links.selected
        if link is None or link.id != connection or link.session is None:
            return None
        if not link.early:
            return link.session.core.data_to_send(link.id, size)
        chunk = link.session.core.data_to_send(link.id, min(size, link.allowance))
        if chunk is not None:
            link.early_bytes += len(chunk.data)
            link.early_pieces += 1
        return chunk

    def _receive(self, link: Link, event: Event, now: float) -> None:
        if isinstance(event, SessionEvent):
            if link.phase is Phase.ATTACHED or link.phase is Phase.DRAINING:
                self._session_event(link, event, now)
            else:
                link.expect(event)
                link.hold(event)
            return
        link.expect(event)
        match event:
            case Hello():
                link.hello = event
                link.deadline = None
                self._judge(link, now)
            case Accept():
                self._accepted(link, event, now)
            case Ping():
                link.frames.append(encode(Pong(event.nonce)))
            case Pong() if link.phase is not Phase.CHALLENGED:
                self._ponged(link, event, now)
            case Pong() if event.nonce == link.nonce:
                link.proven = True
                self._judge(link, now)
            case Retire() if not link.retired_by_peer:
                link.retired_by_peer = True
                self._drain(link, now)

    def _session_event(self, link: Link, event: SessionEvent, now: float) -> None:
        session = link.session
        if session is None or session is not self.session:
            return
        match event:
            case StreamData():
                session.core.receive_stream(event.stream, event.offset, event.data, now, link.watch)
            case Sync():
                if link.synced:
                    # The peer has lost a connection: what it said there of streams that have ended is gone.
                    session.core.repeat_state()
                else:
                    link.synced = True
                    link.acknowledged.clear()
                    self._forsake_silent()
                session.core.resume()
            case Window() if not link.synced and event.received < link.acknowledged.get(event.stream, 0):
                raise ProtocolViolation(
                    CloseCode.FLOW_CONTROL_ERROR,
                    f"stream {event.stream}: {event.received} received, but more was acknowledged before",
                )
            case _:
                session.core.receive_frame(event, now)

    def _release(self, link: Link, now: float) -> None:
        held, link.held = link.held, []
        try:
            for event in held:
                self._session_event(link, event, now)
        except ProtocolViolation as violation:
            self._close(link, violation.code, violation.reason, now)

    def _judge(self, link: Link, now: float) -> None:
        """Do with it as its HELLO deserves."""
        hello, session = link.hello, self.session
        assert hello is not None  # noqa: S101 - only judged with a HELLO
        match judge(hello, session, process=self._process, proven=link.proven, attached=bool(self.attached)):
            case Judgement.GONE | Judgement.STALE as verdict:
                self._close(link, UNKNOWN[verdict], verdict.value, now)
            case Judgement.NEW:
                self._begin_with(link, now)
            case Judgement.SAME:
                self._accept(link, now)
            case Judgement.CHALLENGE if link.phase is not Phase.CHALLENGED:
                link.phase = Phase.CHALLENGED
                link.deadline = now + self._settings.handshake_timeout
                link.nonce = self._random()
                link.frames.append(encode(Ping(link.nonce)))
            case Judgement.REPLACE:
                self._replace(link, Ending.GONE, now)
            case Judgement.RESTART:
                self._replace(link, Ending.RESTARTED, now)
            case Judgement.ASK if link.asked is not session:
                self._ask(link, now)

    def _ask(self, link: Link, now: float) -> None:
        """The echo came; now the old connections have their say."""
        link.asked = self.session
        link.asked_at = now
        patience = VERDICT_TIMEOUT
        for other in self._links.carrying(self.session):
            patience = max(patience, 3 * (other.watch().probe_timeout or 0))
            other.ping(self._random(), now)
        link.deadline = now + patience

    def _judge_again(self, now: float) -> None:
        """Those who wait for a verdict get it now, if the state that stood against them has changed."""
        while self._verdicts_due:
            self._verdicts_due = False
            for link in tuple(self._links.all.values()):
                if link.phase is Phase.CHALLENGED and link.proven:
                    self._judge(link, now)

    def _accept(self, link: Link, now: float) -> None:
        hello, session = link.hello, self.session
        assert hello is not None  # noqa: S101 - only called with a HELLO
        assert session is not None  # noqa: S101 - and with a session
        session.theirs = hello.mine
        session.process = hello.process
        session.linger = min(self._settings.linger, hello.linger / 1000)
        link.session = session
        link.dial = hello.dial
        link.acknowledged = session.core.acknowledged_offsets()
        link.frames.append(encode(accept_for(session, hello, process=self._process, linger=self._linger)))
        session.core.peer_granted(hello.streams, hello.window)
        self._attach(link, session, now)

    def _accepted(self, link: Link, accept: Accept, now: float) -> None:
        session = link.session
        if session is None or session is not self.session or accept.yours != session.mine:
            raise ProtocolViolation(CloseCode.SESSION_GONE, "ACCEPT for another session")
        if session.theirs not in {0, accept.mine}:
            # The ACCEPT echoes our name, so it is fresh; what we have may be a dead process's late HELLO.
            if any(one.synced for one in self._links.carrying(session)):
                raise ProtocolViolation(CloseCode.SESSION_GONE, "ACCEPT of another incarnation")
            if not session.core.pristine or session.core.granted != (accept.streams, accept.window):
                self._end(Ending.RESTARTED, now, close=CloseCode.SESSION_GONE)
                return
            for one in self.attached:
                self._close(self._links.all[one], CloseCode.SESSION_GONE, "a late HELLO", now)
        session.theirs = accept.mine
        session.process = accept.process
        session.linger = min(self._settings.linger, accept.linger / 1000)
        session.core.peer_granted(accept.streams, accept.window)
        self._attach(link, session, now)

    def _attach(self, link: Link, session: SessionState, now: float) -> None:
        session.connected = True
        session.linger_until = None
        link.phase = Phase.ATTACHED
        link.deadline = None
        keepalive = self._keepalives.setdefault(link.kind[0], self._settings.new_keepalive())
        link.liveness = Liveness(now, keepalive=keepalive, idle_timeout=self._settings.idle_timeout, watch=link.watch)
        link.frames += session.core.report()
        link.frames.append(encode(Sync()))
        session.core.repeat_state()
        self._actions.append(Attached(link.id, session))
        self._links.reselect(self.session)
        for one in self._links.surplus(session):
            self._drain(one, now)
        self._release(link, now)

    def _replace(self, link: Link, why: Ending, now: float) -> None:
        """The peer has begun anew: our session is over, the connection's begins."""
        self._end(why, now, close=CloseCode.SESSION_GONE, reason="replaced")
        self._begin_with(link, now)

    def _begin_with(self, link: Link, now: float) -> None:
        self.session = self._new_session(chosen=False)
        if self.session is None:
            self._close(link, CloseCode.BUSY, "no memory for another session", now)
        else:
            self._accept(link, now)

    def _new_session(self, *, chosen: bool) -> SessionState | None:
        granted = self._grant(chosen)
        if granted is None:
            return None
        limits, budget = granted
        core = SessionCore(even=self._smaller, limits=limits, budget=budget)
        return SessionState(core, budget, self._random() or 1, self._settings.linger)

    def _leave(self, link: Link, session: SessionState, now: float) -> None:
        """A connection carries the session no longer."""
        others = any(one.phase is Phase.ATTACHED for one in self._links.carrying(self.session))
        session.core.forsake(link.id, wait=not others)
        self._links.reselect(self.session)
        if others:
            self._forsake_silent()
            self._repeat(session)
        elif session.connected and session.linger_until is None:
            session.linger_until = now + session.linger
            self._actions.append(Lingering(session))

    def _drain(self, link: Link, now: float) -> None:
        if link.phase is Phase.ATTACHED:
            link.phase = Phase.DRAINING
            link.deadline = now + DRAIN_TIMEOUT
            self._draining = True
            self._links.reselect(self.session)
        self._settle(now)

    def _settle(self, now: float) -> None:
        """Go on with draining connections on which nothing of ours is under way any more."""
        draining = [link for link in self._links.all.values() if link.phase is Phase.DRAINING]
        self._draining = bool(draining)
        for link in draining:
            if link.session is not None and not link.session.core.in_flight(link.id):
                self._drained(link, now)

    def _drained(self, link: Link, now: float) -> None:
        if link.retired_by_peer:
            self._close(link, CloseCode.RETIRED, "", now)
        elif not link.retire_sent:
            link.retire_sent = True
            link.deadline = now + DRAIN_TIMEOUT
            link.frames.append(encode(Retire()))

    def _forsake_silent(self) -> None:
        """With an answering connection at hand, what a silent one carries goes out again, credit included."""
        session, selected = self.session, self._links.selected
        if session is None or selected is None or selected.suspect or not selected.synced:
            return
        for link in self._links.carrying(session):
            if link.suspect and not link.forsaken:
                link.forsaken = True
                session.core.forsake(link.id, wait=False)
                self._repeat(session)

    def _repeat(self, session: SessionState) -> None:
        """Say again on the selected connection what may have been lost on another, and ask the peer to do so, too.

        A stream that has ended is forgotten, so a GONE cannot be said again; the peer has to ask by its FIN or RESET.
        """
        link = self._links.selected
        if link is None or link.phase is not Phase.ATTACHED:
            return
        link.frames += session.core.report()
        link.frames.append(encode(Sync()))
        session.core.repeat_state()

    def _recovered(self, link: Link) -> None:
        link.forsaken = False
        self._actions.append(Recovered(link.id))
        self._links.reselect(self.session)
        self._forsake_silent()

    def _close(self, link: Link, code: CloseCode, reason: str, now: float) -> None:
        """Ask the shell to close it; the loss is dealt with now, so that nothing is sent into it."""
        if link.phase is Phase.CLOSED:
            return
        link.phase = Phase.CLOSED
        link.deadline = None
        link.liveness = None
        self._actions.append(CloseConnection(link.id, code, reason))
        if link.session is not None and link.session is self.session:
            self._leave(link, link.session, now)

    def _end(self, why: Ending, now: float, *, close: CloseCode, code: int = 0, reason: str = "") -> None:
        """The session is over: its streams fail, its connections are closed with `close`."""
        session = self.session
        assert session is not None  # noqa: S101 - only called with one
        self.session = None
        self._links.selected = None
        self._verdicts_due = True
        session.core.close()
        self._actions.append(Ended(session, why, code, reason))
        for link in tuple(self._links.all.values()):
            if link.session is session:
                self._close(link, close, reason, now)

    def _ponged(self, link: Link, pong: Pong, now: float) -> None:
        sent = link.pings.pop(pong.nonce, None)
        if sent is None:
            return
        self._actions.append(Answered(link.id, pong.nonce, now - sent))
        for other in tuple(self._links.all.values()):
            if other.phase is Phase.CHALLENGED and other.asked is link.session and sent >= other.asked_at:
                self._close(other, CloseCode.DUPLICATE_IDENTITY, "another living process has this key", now)

    def _deadline(self, link: Link, now: float) -> None:
        link.deadline = None
        if link.phase is Phase.AWAIT_HELLO or (link.phase is Phase.CHALLENGED and not link.proven):
            self._close(link, CloseCode.HANDSHAKE_TIMEOUT, "no HELLO, or no answer, in time", now)
        elif link.phase is Phase.CHALLENGED and link.asked is self.session is not None:
            self._replace(link, Ending.RESTARTED, now)
        elif link.phase is Phase.CHALLENGED:
            self._judge(link, now)
        elif link.phase is Phase.DRAINING and link.retire_sent:
            self._close(link, CloseCode.RETIRED, "", now)
        elif link.phase is Phase.DRAINING:
            self._drained(link, now)

    def _check(self, link: Link, now: float) -> None:
        assert link.liveness is not None  # noqa: S101 - only called with one
        match link.liveness.check(now):
            case Verdict.SUSPECT:
                link.ping(self._random(), now)
                self._actions.append(Suspected(link.id))
                self._links.reselect(self.session)
                self._forsake_silent()
            case Verdict.RECOVERED:
                self._recovered(link)
            case Verdict.KEEPALIVE:
                link.ping(self._random(), now)
            case Verdict.DEAD:
                self._close(link, CloseCode.SILENT, "nothing was heard for too long", now)
            case Verdict.FINE:
                pass
