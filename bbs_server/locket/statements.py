"""Every statement of Locket (locket.md section 8). `path` is a lock's key."""

from __future__ import annotations

CREATE = """
CREATE TABLE IF NOT EXISTS locks (
    path VARCHAR(255) PRIMARY KEY,
    owner VARCHAR(255),
    value VARCHAR(4096),
    type VARCHAR(255) DEFAULT '',
    modified_index BIGINT DEFAULT 0,
    modified_id VARCHAR(255) DEFAULT '',
    ttl BIGINT DEFAULT 0
)
"""

FIND = "SELECT path, owner, value, type, modified_index, modified_id, ttl FROM locks WHERE path = $1 FOR UPDATE"

INSERT = """
INSERT INTO locks (path, owner, value, type, modified_index, modified_id, ttl)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""

UPDATE = """
UPDATE locks
SET owner = $2, value = $3, type = $4, modified_index = $5, modified_id = $6, ttl = $7
WHERE path = $1
"""

DELETE = "DELETE FROM locks WHERE path = $1"

EXPIRE = "DELETE FROM locks WHERE path = $1 AND owner = $2 AND modified_id = $3 AND modified_index = $4"

# NULLs are only possible by hand. Such rows stay out of lists (locket.md section 8), so that one cell's does not hide
# all the others.
LIST = """
SELECT path, owner, value, type, modified_index, modified_id, ttl FROM locks
WHERE type = $1 AND owner <> '' AND num_nulls(value, modified_index, modified_id, ttl) = 0
"""

# Here only those without an owner do; the others expire.
ALL = """
SELECT path, owner, COALESCE(value, '') AS value, COALESCE(type, '') AS type,
    COALESCE(modified_index, 0) AS modified_index, COALESCE(modified_id, '') AS modified_id, COALESCE(ttl, 0) AS ttl
FROM locks WHERE owner IS NOT NULL
"""

COUNT = "SELECT count(*) FROM locks WHERE type = $1 AND owner <> ''"

# In ms, for each statement and each pause within a transaction.
LIMIT = """
SELECT set_config('statement_timeout', $1, false), set_config('idle_in_transaction_session_timeout', $1, false)
"""

HEALTH_CREATE = "CREATE TABLE IF NOT EXISTS locket_health_check (id SERIAL PRIMARY KEY, time BIGINT NOT NULL)"
HEALTH_UPDATE = "UPDATE locket_health_check SET id = 1, time = $1 WHERE id = 1"
HEALTH_INSERT = "INSERT INTO locket_health_check (id, time) VALUES (1, $1)"
HEALTH_SELECT = "SELECT time FROM locket_health_check WHERE id = 1"
