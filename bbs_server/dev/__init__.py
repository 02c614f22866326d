"""The laptop stack: everything around the server that a deployment would bring, on loopback."""
