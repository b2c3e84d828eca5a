"""The plan of a race: scenarios as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.protocol.race import plan

V6 = "2001:db8::1"
V4 = "198.51.100.7"
ORDER = ("quic", "udp", "tcp")


def times(
    candidates: list[tuple[str, str]], order: tuple[str, ...] = ORDER, **options: float
) -> list[tuple[str, str, float]]:
    starts = plan([(transport, host, 9330) for transport, host in candidates], order, **options)
    return [(start.transport, start.host, round(start.at, 3)) for start in starts]


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], []),
        ([("quic", V4)], [("quic", V4, 0)]),
        ([("tcp", V4)], [("tcp", V4, 0)]),
        ([("tcp", V4), ("quic", V4)], [("quic", V4, 0), ("tcp", V4, 0.25)]),
        (
            [("quic", V4), ("quic", V6), ("tcp", V4), ("tcp", V6)],
            [("quic", V6, 0), ("quic", V4, 0.25), ("tcp", V6, 0.5), ("tcp", V4, 0.75)],
        ),
        (
            [("quic", V6), ("quic", "2001:db8::2"), ("quic", "2001:db8::3"), ("quic", V4), ("tcp", V4)],
            [
                ("quic", V6, 0),
                ("quic", V4, 0.25),
                ("quic", "2001:db8::2", 0.5),
                ("tcp", V4, 0.5),
                ("quic", "2001:db8::3", 0.75),
            ],
        ),
        (
            [("quic", "192.168.1.2"), ("quic", "10.0.0.2"), ("tcp", "192.168.1.2")],
            [("quic", "192.168.1.2", 0), ("quic", "10.0.0.2", 0.03), ("tcp", "192.168.1.2", 0.28)],
        ),
        ([("udp", V4), ("quic", V4)], [("quic", V4, 0), ("udp", V4, 0.25)]),
        ([("memory", V4), ("quic", V4)], [("quic", V4, 0)]),
        (
            [("quic", V4), ("udp", V4), ("tcp", V4)],
            [("quic", V4, 0), ("udp", V4, 0.25), ("tcp", V4, 0.35)],
        ),
        (
            [(transport, host) for transport in ("tcp", "udp", "quic") for host in (V4, V6)],
            [
                ("quic", V6, 0),
                ("quic", V4, 0.25),
                ("udp", V6, 0.5),
                ("tcp", V6, 0.5),
                ("udp", V4, 0.75),
                ("tcp", V4, 0.75),
            ],
        ),
        (
            [("udp", V6), ("udp", "2001:db8::2"), ("udp", "2001:db8::3"), ("udp", V4), ("tcp", V4)],
            [
                ("udp", V6, 0),
                ("udp", V4, 0.25),
                ("udp", "2001:db8::2", 0.5),
                ("tcp", V4, 0.5),
                ("udp", "2001:db8::3", 0.75),
            ],
        ),
        ([("quic", V4), ("quic", V4)], [("quic", V4, 0)]),
    ],
    ids=[
        "nothing",
        "QUIC alone",
        "TCP alone does not wait for QUIC",
        "TCP 250 ms after QUIC",
        "IPv6 first, TCP after the last QUIC",
        "TCP at 500 ms however many QUIC addresses",
        "small steps on private networks, the whole distance to TCP",
        "raw UDP 250 ms after QUIC",
        "transports that are not configured are left out",
        "TCP 100 ms after raw UDP",
        "raw UDP and TCP at 500 ms at the latest",
        "TCP at 500 ms without QUIC, too",
        "duplicates are tried once",
    ],
)
def test_start_times(candidates: list[tuple[str, str]], expected: list[tuple[str, str, float]]) -> None:
    """What starts when."""
    public = [(t, h) for t, h in candidates]
    documentation = {V4: "9.9.9.9", V6: "2620:fe::fe", "2001:db8::2": "2620:fe::9", "2001:db8::3": "2620:fe::10"}
    given_ = [(t, documentation.get(h, h)) for t, h in public]
    assert times(given_) == [(t, documentation.get(h, h), at) for t, h, at in expected]


def test_no_step_is_shorter_than_one_and_a_half_round_trips() -> None:
    """A satellite link's fallback does not start before QUIC could have answered."""
    assert times([("quic", "9.9.9.9"), ("tcp", "9.9.9.9")], rtt=0.6) == [
        ("quic", "9.9.9.9", 0),
        ("tcp", "9.9.9.9", 0.9),
    ]


@given(
    st.lists(st.tuples(st.sampled_from(["quic", "tcp", "udp"]), st.ip_addresses().map(str)), max_size=12),
    st.permutations(["quic", "udp", "tcp"]),
)
def test_each_configured_candidate_starts_once_in_order_of_time(
    candidates: list[tuple[str, str]], order: list[str]
) -> None:
    """Nothing is lost, nothing doubled, and something starts at once."""
    starts = times(candidates, tuple(order))
    assert sorted({(t, h) for t, h, _ in starts}) == sorted(set(candidates))
    assert len(starts) == len(set(candidates))
    assert [at for *_, at in starts] == sorted(at for *_, at in starts)
    assert not starts or starts[0][2] == 0
