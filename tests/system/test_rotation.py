"""Key rotation as operators do it: both keys, then the new one only; a missing one is refused (storage.md 5.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import reference
from safety import Client, Program, Programs, rows, task_life
from safety import lrp_life as life

OLD, NEW = "key1", "clé-3"


def with_keys(programs: Programs, active: str, *labels: str) -> Program:
    keys = {label: reference.PASSPHRASES[label] for label in labels}
    return programs.bbs(active_key_label=active, encryption_keys=keys)


async def test_rotation(tmp_path: Path, certificates: Any, postgres_url: str) -> None:
    psql = await asyncpg.connect(postgres_url)
    with Programs(tmp_path, certificates, postgres_url) as programs:
        first = with_keys(programs, OLD, OLD)
        first.start()
        await first.serving()
        async with Client(first) as client:
            for number in range(5):
                for steps in (task_life(f"t{number}"), life(f"p{number}")):
                    for step, _ in zip(steps, range(number + 1), strict=False):
                        if step.becomes:
                            await client.must(step.path, step.request)
            there = await client.listed()
        first.kill()
        plain = await reference.sealed_values(psql)
        assert {label for label, _ in plain.values()} == {OLD}

        second = with_keys(programs, NEW, OLD, NEW)
        second.start()
        await second.serving()
        async with Client(second) as client:
            assert await client.listed() == there
        await second.until_logged(".encryptor.encryption-finished")
        second.kill()
        resealed = await reference.sealed_values(psql)
        assert {label for label, _ in resealed.values()} == {NEW}
        assert {key: text for key, (_, text) in resealed.items()} == {key: text for key, (_, text) in plain.items()}
        stored = await psql.fetchval("SELECT value FROM configurations WHERE id = 'encryption_key_label'")
        assert stored == NEW

        third = with_keys(programs, NEW, NEW)
        third.start()
        await third.serving()
        async with Client(third) as client:
            assert await client.listed() == there
        third.kill()

        before = await rows(postgres_url)
        wrong = with_keys(programs, OLD, OLD, "k2")
        wrong.start()
        assert await wrong.ended() == 1
        messages = [line["message"] for line in wrong.logged()]
        assert ".encryptor.unknown-encryption-key-lable" in messages
        problem = f"Existing encryption key version ({NEW}) is not among the known keys"
        assert problem in wrong.logged()[-1]["data"]["error"]
        assert await rows(postgres_url) == before
    await psql.close()
