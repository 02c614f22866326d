"""Ask each running instance of a process over HTTP: visit.py PROCESS_GUID."""

import asyncio
import os
import sys

import httpx

from bbs_server.client import Client, Target

TARGET = Target(*(os.environ[name] for name in ("BBS_URL", "CA_CERT_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE")))


async def main(guid: str) -> None:
    async with Client(TARGET) as bbs, httpx.AsyncClient(trust_env=False) as http:
        for lrp in sorted(await bbs.actual_lrps(process_guid=guid), key=lambda lrp: lrp.actual_lrp_key.index):
            info = lrp.actual_lrp_net_info
            answer = await http.get(f"http://{info.address}:{info.ports[0].host_port}/")
            print(answer.text.strip())


asyncio.run(main(sys.argv[1]))
