-- name: load
SELECT domain, expire_time, xmin FROM domains

-- name: rows
SELECT t.domain, t.expire_time, t.xmin
FROM unnest($1::text[]) AS k (domain) JOIN domains t USING (domain)

-- name: fingerprint
SELECT count(*), COALESCE(sum(x), 0)::bigint, COALESCE(sum((x % 1000003) * (x % 1000003)), 0)::bigint
FROM (SELECT xmin::text::bigint AS x FROM domains) AS versions

-- name: versions
SELECT domain, xmin FROM domains

-- name: batch
-- Rows are looked up by key first and then met by their place: the planner believes that a table is empty when it was
-- at its last analysis, and would otherwise read all of it for every batch. OFFSET 0 keeps it from undoing this.
-- `placed` is not materialized, so that the operation is looked at before the row is looked up.
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations WHERE id = 'bbs_server_writer_epoch' AND value = $1 FOR SHARE
), batch AS MATERIALIZED (
  SELECT r.*
  FROM fence CROSS JOIN unnest($3::text[], $4::xid[], $5::text[], $6::bigint[])
    AS r (operation, version, domain, expire_time)
), inserted AS (
  INSERT INTO domains (domain, expire_time)
  SELECT domain, expire_time FROM batch WHERE operation = 'insert'
  RETURNING 1
), placed AS NOT MATERIALIZED (
  SELECT b.*, k.place FROM batch b CROSS JOIN LATERAL (
    SELECT k.ctid AS place FROM domains k
    WHERE k.domain = b.domain AND k.xmin = b.version
    OFFSET 0
  ) k
), updated AS (
  UPDATE domains t SET expire_time = r.expire_time
  FROM placed r WHERE r.operation = 'update' AND t.ctid = r.place
  RETURNING 1
), deleted AS (
  DELETE FROM domains t USING placed r WHERE r.operation = 'delete' AND t.ctid = r.place
  RETURNING 1
), result AS (
  SELECT (SELECT count(*) FROM fence) AS fenced,
    (SELECT count(*) FROM inserted) + (SELECT count(*) FROM updated) + (SELECT count(*) FROM deleted) AS hit
)
-- A row that must be hit and is not fails the whole statement: division by zero.
SELECT fenced, txid_current(), 1 / CASE WHEN fenced = 0 OR hit = $2::bigint THEN 1 ELSE 0 END FROM result
