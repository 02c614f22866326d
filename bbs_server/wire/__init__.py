"""HTTP over mutual TLS: routing, decoding, encoding and event streams. Holds no state."""
