"""The soak: an hour of mixed load on a fail-over pair while processes are killed and the database restarts.

`ledger` remembers what was acknowledged, `checkpoint` compares it with what is there, `faults` are the
schedule. Everything but the load is real: PostgreSQL, Locket, two servers, TLS, HTTP and gRPC.
"""
