"""How PostgreSQL carries out a batch: by key, whatever it believes of the table."""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import pytest

from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sql import STATEMENTS


@pytest.mark.parametrize("table", list(MAPPINGS))
async def test_rows_are_found_by_key_even_in_a_table_that_was_empty_when_it_was_analysed(
    open_store: Any, psql: asyncpg.Connection[Any], table: str
) -> None:
    await open_store()
    await psql.execute("VACUUM ANALYZE")
    await psql.execute(STATEMENTS["configurations"]["writer_session"])
    statement = STATEMENTS[table]["batch"]
    await psql.execute(f"PREPARE batch AS {statement}")
    nothing = ", ".join(["NULL"] * max(map(int, re.findall(r"\$(\d+)", statement))))
    rows = await psql.fetch(f"EXPLAIN EXECUTE batch ({nothing})")
    plan = [row[0].strip() for row in rows]
    assert sum(f"Tid Scan on {table} t" in line for line in plan) == 2  # the updated and the deleted rows
    lookups = [number for number, line in enumerate(plan) if f"on {table} k" in line]
    assert len(lookups) == 2
    assert all("Index Cond" in plan[number + 1] for number in lookups)
