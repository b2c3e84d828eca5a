"""Raw UDP: reliable, congestion-controlled, encrypted packets of our own, as a pure core.

Read in the order in which a packet lives:

1. `wire`, `payload`: what packets and frames look like, and why.
2. `cookie`, `handshake` and its kind, `keys`: an address is proven, then a key, then packets are sealed.
3. `ranges`, `inbox`: which packet numbers have arrived; frames become events.
4. `control`, `outbox`: what waits to be sent, and what is sent again.
5. `sent`, `rtt`, `recovery`: what is on its way, acknowledged, lost (RFC 9002).
6. `congestion`, `cubic`, `bbr`, `pacing`: how much may leave, and when.
7. `mtu`, `connection_ids`, `path`: how large a packet may be, and where it goes.
8. `flight` ties 5 to 7 together, and `transmission` all but the keys: payloads in, payloads out.
9. `connection`, on `established` and `session_side`: the whole life, datagrams in, datagrams out.
"""
