"""Ways to carry a session's bytes: one module per transport, all behind `overlay.transports.base`."""
