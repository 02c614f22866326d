"""A Locket server: locks and presences with a time to live, over gRPC on PostgreSQL."""
