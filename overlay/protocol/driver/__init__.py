"""What a driver of frames says on a session and remembers of it, as a pure core.

Read in the order in which a frame lives:

1. `outbox`, `under_way`: what one neighbour is owed: it waits, has left, is acknowledged, or comes back.
2. `wire`: how frames follow each other on a stream, and what a datagram begins with.
3. `inbox`: what has arrived from all neighbours, and whose turn it is to be read.
4. `rate`: how many bytes per second that makes.
"""
