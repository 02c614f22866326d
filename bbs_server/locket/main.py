"""The program bbs-locket (locket.md section 9)."""

from __future__ import annotations

import sys
from typing import NoReturn

from bbs_server.locket.config import LocketConfig
from bbs_server.process.lager import Logger
from bbs_server.process.main import run_program

PROCESS_NAME = "locket"


def main() -> NoReturn:
    """Run Locket. Never returns."""

    async def serve(config: LocketConfig, logger: Logger) -> None:
        from bbs_server.locket.lifecycle import run

        await run(config, logger)

    run_program(PROCESS_NAME, sys.argv[1:], LocketConfig, lambda config: "locket", serve)


if __name__ == "__main__":
    main()
