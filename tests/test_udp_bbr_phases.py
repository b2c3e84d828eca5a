"""The factors of BBR's phases keep the proportions on which its model relies."""

from overlay.protocol.udp import bbr_phases as phases
from overlay.protocol.udp.bbr_phases import Phase


def test_what_up_adds_can_be_told_from_noise_and_is_drained_again() -> None:
    assert Phase.UP.pacing * phases.PACING_MARGIN > phases.UP_GROWTH > 1.0
    assert Phase.DOWN.pacing < 1.0
    assert Phase.DRAIN.pacing < 1.0


def test_startup_can_double_each_round_trip() -> None:
    """4 ln 2 = 2.77 sends each window's worth twice within a round trip (the draft, section 5.6.2)."""
    assert 2.0 < Phase.STARTUP.pacing < 3.0
    assert Phase.STARTUP.window >= 2.0


def test_window_of_every_phase_but_probe_rtt_exceeds_what_its_pace_needs() -> None:
    for phase in Phase:
        assert phase is Phase.PROBE_RTT or phase.window > 1.0
    assert Phase.UP.window > Phase.UP.pacing
    assert Phase.PROBE_RTT.window < 1.0
