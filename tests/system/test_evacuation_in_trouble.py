"""An evacuation that the database prevents leaves the container where it is (evacuation.md 6, row 1)."""

from __future__ import annotations

from typing import Any

import asyncpg
import httpx
import pytest
from bbs_protos import models_pb2 as models

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"


@pytest.mark.parametrize("path", ["/v1/actual_lrps/evacuate_running.r1", "/v1/actual_lrps/evacuate_running"])
async def test_a_container_is_kept_while_the_database_is_away(path: str, run_system: Any, postgres: Any) -> None:
    admin = await asyncpg.connect(postgres.url())
    async with run_system(converge_repeat_interval="1h") as system:
        guid = system.guid("evacuated")
        await system.desire(guid, 1)
        await system.start(guid, 0, "home")
        request = models.EvacuateRunningActualLRPRequest(
            actual_lrp_key=system.key(guid, 0),
            actual_lrp_instance_key=system.instance(0, "home"),
            actual_lrp_net_info=models.ActualLRPNetInfo(address="10.0.0.1"),
        )
        name = system.database_url.rsplit("/", 1)[1].partition("?")[0]
        await system.database.close()
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute(CUT, name)
        http = httpx.AsyncClient(base_url=system.target.url, verify=system.target.tls(), trust_env=False, timeout=60)
        async with http:
            reply = await http.post(path, content=request.SerializeToString())
        answer = models.EvacuationResponse.FromString(reply.content)
        assert answer.HasField("error")
        assert answer.keep_container
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    await admin.close()
