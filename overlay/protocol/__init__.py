"""The pure core: bytes, events and `now` go in; bytes, events and the next deadline come out.

Nothing in this package knows a socket, an event loop or a clock. A test walks its imports and holds it to that.
"""
