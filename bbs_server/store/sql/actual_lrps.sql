-- name: load
SELECT process_guid, instance_index, presence, domain, state, instance_guid, cell_id, placement_error, since, net_info,
  modification_tag_epoch, modification_tag_index, crash_count, crash_reason, internal_routes, metric_tags, routable,
  availability_zone, xmin
FROM actual_lrps

-- name: rows
SELECT t.process_guid, t.instance_index, t.presence, t.domain, t.state, t.instance_guid, t.cell_id, t.placement_error,
  t.since, t.net_info, t.modification_tag_epoch, t.modification_tag_index, t.crash_count, t.crash_reason,
  t.internal_routes, t.metric_tags, t.routable, t.availability_zone, t.xmin
FROM unnest($1::text[], $2::int[], $3::int[]) AS k (process_guid, instance_index, presence)
  JOIN actual_lrps t USING (process_guid, instance_index, presence)

-- name: fingerprint
SELECT count(*), COALESCE(sum(x), 0)::bigint, COALESCE(sum((x % 1000003) * (x % 1000003)), 0)::bigint
FROM (SELECT xmin::text::bigint AS x FROM actual_lrps) AS versions

-- name: versions
SELECT process_guid, instance_index, presence, xmin FROM actual_lrps

-- name: batch
-- Rows are looked up by key first and then met by their place: the planner believes that a table is empty when it was
-- at its last analysis, and would otherwise read all of it for every batch. OFFSET 0 keeps it from undoing this.
-- `placed` is not materialized, so that the operation is looked at before the row is looked up.
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations WHERE id = 'bbs_server_writer_epoch' AND value = $1 FOR SHARE
), batch AS MATERIALIZED (
  SELECT r.* FROM fence CROSS JOIN unnest(
    $3::text[], $4::xid[],
    $5::text[], $6::int[], $7::int[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
    $13::bigint[], $14::text[], $15::text[], $16::int[], $17::int[], $18::text[], $19::text[], $20::text[], $21::bool[],
    $22::text[]
  ) AS r (
    operation, version, process_guid, instance_index, presence, domain, state, instance_guid, cell_id, placement_error,
    since, net_info, modification_tag_epoch, modification_tag_index, crash_count, crash_reason, internal_routes,
    metric_tags, routable, availability_zone
  )
), inserted AS (
  INSERT INTO actual_lrps (
    process_guid, instance_index, presence, domain, state, instance_guid, cell_id, placement_error, since, net_info,
    modification_tag_epoch, modification_tag_index, crash_count, crash_reason, internal_routes, metric_tags, routable,
    availability_zone
  )
  SELECT process_guid, instance_index, presence, domain, state, instance_guid, cell_id, placement_error, since,
    net_info, modification_tag_epoch, modification_tag_index, crash_count, crash_reason, internal_routes,
    NULLIF(metric_tags, ''), routable, availability_zone
  FROM batch WHERE operation = 'insert'
  RETURNING 1
), placed AS NOT MATERIALIZED (
  SELECT b.*, k.place FROM batch b CROSS JOIN LATERAL (
    SELECT k.ctid AS place FROM actual_lrps k
    WHERE k.process_guid = b.process_guid AND k.instance_index = b.instance_index AND k.presence = b.presence
      AND k.xmin = b.version
    OFFSET 0
  ) k
), updated AS (
  UPDATE actual_lrps t SET
    domain = r.domain, state = r.state, instance_guid = r.instance_guid, cell_id = r.cell_id,
    placement_error = r.placement_error, since = r.since, net_info = COALESCE(r.net_info, t.net_info),
    modification_tag_epoch = r.modification_tag_epoch, modification_tag_index = r.modification_tag_index,
    crash_count = r.crash_count, crash_reason = r.crash_reason,
    internal_routes = COALESCE(r.internal_routes, t.internal_routes),
    metric_tags = CASE r.metric_tags WHEN '' THEN NULL ELSE COALESCE(r.metric_tags, t.metric_tags) END,
    routable = r.routable, availability_zone = r.availability_zone
  FROM placed r WHERE r.operation = 'update' AND t.ctid = r.place
  RETURNING 1
), deleted AS (
  DELETE FROM actual_lrps t USING placed r WHERE r.operation = 'delete' AND t.ctid = r.place
  RETURNING 1
), result AS (
  SELECT (SELECT count(*) FROM fence) AS fenced,
    (SELECT count(*) FROM inserted) + (SELECT count(*) FROM updated) + (SELECT count(*) FROM deleted) AS hit
)
-- A row that must be hit and is not fails the whole statement: division by zero.
SELECT fenced, txid_current(), 1 / CASE WHEN fenced = 0 OR hit = $2::bigint THEN 1 ELSE 0 END FROM result

-- name: sealed
SELECT net_info, internal_routes, metric_tags, xmin
FROM actual_lrps WHERE process_guid = $1 AND instance_index = $2 AND presence = $3

-- name: reseal
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations
  WHERE id = 'bbs_server_writer_epoch' AND split_part(value, ' ', 2) = $1::text
  FOR SHARE
), resealed AS (
  UPDATE actual_lrps t SET net_info = $6, internal_routes = $7, metric_tags = $8
  FROM fence WHERE t.process_guid = $2 AND t.instance_index = $3 AND t.presence = $4 AND t.xmin = $5
  RETURNING t.xmin
)
SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT xmin FROM resealed) AS version
