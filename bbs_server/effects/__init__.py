"""What follows a commit: events to the streams, auctions, calls to cells and task callbacks.

How the process puts them together::

    hubs = Hubs(log)
    presences = Presences(locket, timeout, log)
    auctioneer = Auctioneer(address, Peer(tls, timeout), plain, log)
    dispatcher = Dispatcher(hubs, auctioneer, Reps(presences, Peer(tls, timeout), log), presences, log)
    writer = ...                          # the store, with `dispatch=dispatcher`
    dispatcher.attach(writer, Peer(callback_tls, timeout), workers)
    ...
    await dispatcher.close()              # before the writer is closed
"""

import os

# The gRPC library writes notices to stderr, which is kept for crash traces (server.md 13.1). It reads this once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
