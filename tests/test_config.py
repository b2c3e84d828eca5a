"""Settings that cannot work are refused with a sentence."""

import pytest

from overlay import Config, ConfigError


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"transports": ()}, "transports"),
        ({"transports": ("pigeon",)}, "pigeon"),
        ({"dial_timeout": 0}, "dial_timeout"),
        ({"keepalive": -1}, "keepalive"),
        ({"largest_datagram": 271}, "largest_datagram"),
        ({"largest_datagram": 65_508}, "largest_datagram"),
        ({"resume_timeout": -1}, "resume_timeout"),
        ({"never_dial": ("10.0.0.0/99",)}, "never_dial"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, object], part: str) -> None:
    """The error says which one."""
    with pytest.raises(ConfigError, match=part):
        Config(**settings)  # type: ignore[arg-type]


def test_the_defaults_are_valid_and_frozen() -> None:
    """They are what the README shows."""
    config = Config()
    assert config.transports == ("quic", "udp", "tcp")
    with pytest.raises(AttributeError):
        config.dial_timeout = 1  # type: ignore[misc]
