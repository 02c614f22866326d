"""Subscribe, run a command, print the crashes of a process until it waits: crashes.py PROCESS_GUID COMMAND..."""

import asyncio
import os
import sys

from bbs_server.client import Client, Target

TARGET = Target(*(os.environ[name] for name in ("BBS_URL", "CA_CERT_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE")))


async def main(guid: str, command: list[str]) -> None:
    async with Client(TARGET) as bbs:
        async for event in bbs.subscribe("/v1/events/lrp_instances.r1"):
            if event is None:  # subscribed
                await asyncio.create_subprocess_exec(*command)
            elif event.name == "actual_lrp_crashed" and event.message.actual_lrp_key.process_guid == guid:
                count = event.message.crash_count
                print(f"crash {count}: {event.message.crash_reason}")
                (lrp,) = await bbs.actual_lrps(process_guid=guid)
                if lrp.state == "CRASHED" and lrp.crash_count == count:  # it may be ahead of its events
                    print("CRASHED: waiting for the back-off")
                    return


asyncio.run(main(sys.argv[1], sys.argv[2:]))
