"""Every rule of the BBS, once: pure, synchronous and deterministic. Imports no other layer."""
