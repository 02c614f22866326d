-- name: create
CREATE TABLE IF NOT EXISTS configurations (id VARCHAR(255) PRIMARY KEY, value VARCHAR(255))

-- name: read
SELECT value FROM configurations WHERE id = $1

-- name: write
INSERT INTO configurations (id, value) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET value = EXCLUDED.value

-- name: raise_epoch
INSERT INTO configurations AS c (id, value) VALUES ('bbs_server_writer_epoch', '1 ' || $1::text)
ON CONFLICT (id) DO UPDATE SET
  value = (COALESCE(substring(c.value FROM '^\d{1,15}(?= )')::bigint, 0) + 1) || ' ' || $1::text
RETURNING value

-- name: keep_epoch
UPDATE configurations SET value = (substring(value FROM '^\d+')::bigint + 1) || ' ' || $1::text
WHERE id = 'bbs_server_writer_epoch' AND split_part(value, ' ', 2) = $1::text
RETURNING value

-- name: hold_epoch
SELECT id FROM configurations
WHERE id = 'bbs_server_writer_epoch' AND split_part(value, ' ', 2) = $1::text
FOR SHARE

-- name: origin
SELECT pg_postmaster_start_time(), oid FROM pg_database WHERE datname = current_database()

-- name: tables
SELECT count(*) FROM pg_class c
WHERE c.relkind = 'r' AND c.relname = $1 AND pg_table_is_visible(c.oid)

-- name: master_session
-- A master that stands still in the middle of a transaction must not keep the next one from migrating. Loading takes a
-- breath between the parts of a snapshot, and may have to share its core.
SELECT set_config('idle_in_transaction_session_timeout', '15s', false)

-- name: writer_session
SELECT set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
  set_config('enable_mergejoin', 'off', false), set_config('enable_bitmapscan', 'off', false),
  set_config('plan_cache_mode', 'force_generic_plan', false), set_config('jit', 'off', false),
  -- A writer that stands still in the middle of a transaction must not keep the next one from raising the epoch.
  set_config('idle_in_transaction_session_timeout', '3s', false)

-- name: lock_timeout
SELECT set_config('lock_timeout', $1, false)

-- name: watch_client
SELECT set_config('client_connection_check_interval', '3s', false)
