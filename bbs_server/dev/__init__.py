"""The laptop stack: everything around the server that a deployment would bring, on loopback."""

import os

# Its programs start others, also under another account. What gRPC does at a fork if it is let lands in the new process
# beside threads that are not there: some of them never got to their program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
