-- name: load
SELECT guid, domain, updated_at, created_at, first_completed_at, state, cell_id, result, failed, failure_reason,
  task_definition, rejection_count, rejection_reason, xmin
FROM tasks

-- name: rows
SELECT t.guid, t.domain, t.updated_at, t.created_at, t.first_completed_at, t.state, t.cell_id, t.result, t.failed,
  t.failure_reason, t.task_definition, t.rejection_count, t.rejection_reason, t.xmin
FROM unnest($1::text[]) AS k (guid) JOIN tasks t USING (guid)

-- name: fingerprint
SELECT count(*), COALESCE(sum(x), 0)::bigint, COALESCE(sum((x % 1000003) * (x % 1000003)), 0)::bigint
FROM (SELECT xmin::text::bigint AS x FROM tasks) AS versions

-- name: versions
SELECT guid, xmin FROM tasks

-- name: batch
-- Rows are looked up by key first and then met by their place: the planner believes that a table is empty when it was
-- at its last analysis, and would otherwise read all of it for every batch. OFFSET 0 keeps it from undoing this.
-- `placed` is not materialized, so that the operation is looked at before the row is looked up.
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations WHERE id = 'bbs_server_writer_epoch' AND value = $1 FOR SHARE
), batch AS MATERIALIZED (
  SELECT r.* FROM fence CROSS JOIN unnest(
    $3::text[], $4::xid[],
    $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[], $10::int[], $11::text[], $12::text[],
    $13::bool[], $14::text[], $15::text[], $16::int[], $17::text[]
  ) AS r (
    operation, version, guid, domain, updated_at, created_at, first_completed_at, state, cell_id, result,
    failed, failure_reason, task_definition, rejection_count, rejection_reason
  )
), inserted AS (
  INSERT INTO tasks (
    guid, domain, updated_at, created_at, first_completed_at, state, cell_id, result, failed, failure_reason,
    task_definition, rejection_count, rejection_reason
  )
  SELECT guid, domain, updated_at, created_at, first_completed_at, state, cell_id, result, failed, failure_reason,
    task_definition, rejection_count, rejection_reason
  FROM batch WHERE operation = 'insert'
  RETURNING 1
), placed AS NOT MATERIALIZED (
  SELECT b.*, k.place FROM batch b CROSS JOIN LATERAL (
    SELECT k.ctid AS place FROM tasks k
    WHERE k.guid = b.guid AND k.xmin = b.version
    OFFSET 0
  ) k
), updated AS (
  UPDATE tasks t SET
    domain = r.domain, updated_at = r.updated_at, created_at = r.created_at,
    first_completed_at = r.first_completed_at, state = r.state, cell_id = r.cell_id, result = r.result,
    failed = r.failed, failure_reason = r.failure_reason,
    task_definition = COALESCE(r.task_definition, t.task_definition),
    rejection_count = r.rejection_count, rejection_reason = r.rejection_reason
  FROM placed r WHERE r.operation = 'update' AND t.ctid = r.place
  RETURNING 1
), deleted AS (
  DELETE FROM tasks t USING placed r WHERE r.operation = 'delete' AND t.ctid = r.place
  RETURNING 1
), result AS (
  SELECT (SELECT count(*) FROM fence) AS fenced,
    (SELECT count(*) FROM inserted) + (SELECT count(*) FROM updated) + (SELECT count(*) FROM deleted) AS hit
)
-- A row that must be hit and is not fails the whole statement: division by zero.
SELECT fenced, txid_current(), 1 / CASE WHEN fenced = 0 OR hit = $2::bigint THEN 1 ELSE 0 END FROM result

-- name: sealed
SELECT task_definition, xmin FROM tasks WHERE guid = $1

-- name: reseal
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations
  WHERE id = 'bbs_server_writer_epoch' AND split_part(value, ' ', 2) = $1::text
  FOR SHARE
), resealed AS (
  UPDATE tasks t SET task_definition = $4 FROM fence WHERE t.guid = $2 AND t.xmin = $3
  RETURNING t.xmin
)
SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT xmin FROM resealed) AS version
