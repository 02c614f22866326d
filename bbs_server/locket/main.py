"""The program bbs-locket (locket.md section 9)."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from bbs_server.locket.config import LocketConfig
from bbs_server.process.lager import Logger
from bbs_server.process.main import run_program

PROCESS_NAME = "locket"

_SUITES = ":".join(
    (
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-GCM-SHA256",
    )
)


def main() -> NoReturn:
    """Run Locket. Never returns."""
    # gRPC knows no other way to choose the suites of server.md section 8.
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", _SUITES)

    async def serve(config: LocketConfig, logger: Logger) -> None:
        from bbs_server.locket.lifecycle import run

        await run(config, logger)

    run_program(PROCESS_NAME, sys.argv[1:], LocketConfig, lambda config: "locket", serve)


if __name__ == "__main__":
    main()
