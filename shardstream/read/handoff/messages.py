"""The messages between the consumer of batches and the process that makes them."""

from __future__ import annotations

import struct

PACKET = 1 << 16  # bytes of a message, at most
# To the consumer: the kind of the message, and the number of the run that it belongs to.
BATCH, END, ERROR = range(3)
KIND = struct.Struct("<BI")
# From the consumer: an order, the number of the run, the epoch and the position. Behind it come the numbers
# of the segments that may be used again.
RUN, TAKEN, LEAVE, STOP = range(4)
ORDER = struct.Struct("<BIQQ")
FREED = struct.Struct("<I")
