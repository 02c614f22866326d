"""The process: configuration, life cycle, Locket lock, logging, metrics and health."""
