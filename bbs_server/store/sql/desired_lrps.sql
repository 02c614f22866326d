-- name: load
SELECT process_guid, domain, log_guid, annotation, instances, memory_mb, disk_mb, rootfs, routes, volume_placement,
  modification_tag_epoch, modification_tag_index, run_info, placement_tags, max_pids, metric_tags, update_strategy, xmin
FROM desired_lrps

-- name: rows
SELECT t.process_guid, t.domain, t.log_guid, t.annotation, t.instances, t.memory_mb, t.disk_mb, t.rootfs, t.routes,
  t.volume_placement, t.modification_tag_epoch, t.modification_tag_index, t.run_info, t.placement_tags, t.max_pids,
  t.metric_tags, t.update_strategy, t.xmin
FROM unnest($1::text[]) AS k (process_guid) JOIN desired_lrps t USING (process_guid)

-- name: fingerprint
SELECT count(*), COALESCE(sum(x), 0)::bigint, COALESCE(sum((x % 1000003) * (x % 1000003)), 0)::bigint
FROM (SELECT xmin::text::bigint AS x FROM desired_lrps) AS versions

-- name: versions
SELECT process_guid, xmin FROM desired_lrps

-- name: batch
-- Rows are looked up by key first and then met by their place: the planner believes that a table is empty when it was
-- at its last analysis, and would otherwise read all of it for every batch. OFFSET 0 keeps it from undoing this.
-- `placed` is not materialized, so that the operation is looked at before the row is looked up.
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations WHERE id = 'bbs_server_writer_epoch' AND value = $1 FOR SHARE
), batch AS MATERIALIZED (
  SELECT r.* FROM fence CROSS JOIN unnest(
    $3::text[], $4::xid[],
    $5::text[], $6::text[], $7::text[], $8::text[], $9::int[], $10::int[], $11::int[], $12::text[],
    $13::text[], $14::text[], $15::text[], $16::int[], $17::text[], $18::text[], $19::int[], $20::text[], $21::int[]
  ) AS r (
    operation, version, process_guid, domain, log_guid, annotation, instances, memory_mb, disk_mb, rootfs, routes,
    volume_placement, modification_tag_epoch, modification_tag_index, run_info, placement_tags, max_pids, metric_tags,
    update_strategy
  )
), inserted AS (
  INSERT INTO desired_lrps (
    process_guid, domain, log_guid, annotation, instances, memory_mb, disk_mb, rootfs, routes, volume_placement,
    modification_tag_epoch, modification_tag_index, run_info, placement_tags, max_pids, metric_tags, update_strategy
  )
  SELECT process_guid, domain, log_guid, annotation, instances, memory_mb, disk_mb, rootfs, routes, volume_placement,
    modification_tag_epoch, modification_tag_index, run_info, placement_tags, max_pids, metric_tags, update_strategy
  FROM batch WHERE operation = 'insert'
  RETURNING 1
), placed AS NOT MATERIALIZED (
  SELECT b.*, k.place FROM batch b CROSS JOIN LATERAL (
    SELECT k.ctid AS place FROM desired_lrps k
    WHERE k.process_guid = b.process_guid AND k.xmin = b.version
    OFFSET 0
  ) k
), updated AS (
  UPDATE desired_lrps t SET
    domain = r.domain, log_guid = r.log_guid, annotation = r.annotation, instances = r.instances,
    memory_mb = r.memory_mb, disk_mb = r.disk_mb, rootfs = r.rootfs,
    routes = COALESCE(r.routes, t.routes), volume_placement = COALESCE(r.volume_placement, t.volume_placement),
    modification_tag_epoch = r.modification_tag_epoch, modification_tag_index = r.modification_tag_index,
    run_info = COALESCE(r.run_info, t.run_info), placement_tags = COALESCE(r.placement_tags, t.placement_tags),
    max_pids = r.max_pids, metric_tags = COALESCE(r.metric_tags, t.metric_tags), update_strategy = r.update_strategy
  FROM placed r WHERE r.operation = 'update' AND t.ctid = r.place
  RETURNING 1
), deleted AS (
  DELETE FROM desired_lrps t USING placed r WHERE r.operation = 'delete' AND t.ctid = r.place
  RETURNING 1
), result AS (
  SELECT (SELECT count(*) FROM fence) AS fenced,
    (SELECT count(*) FROM inserted) + (SELECT count(*) FROM updated) + (SELECT count(*) FROM deleted) AS hit
)
-- A row that must be hit and is not fails the whole statement: division by zero.
SELECT fenced, txid_current(), 1 / CASE WHEN fenced = 0 OR hit = $2::bigint THEN 1 ELSE 0 END FROM result

-- name: sealed
SELECT run_info, volume_placement, routes, metric_tags, xmin FROM desired_lrps WHERE process_guid = $1

-- name: reseal
WITH fence AS MATERIALIZED (
  SELECT id FROM configurations
  WHERE id = 'bbs_server_writer_epoch' AND split_part(value, ' ', 2) = $1::text
  FOR SHARE
), resealed AS (
  UPDATE desired_lrps t SET run_info = $4, volume_placement = $5, routes = $6, metric_tags = $7
  FROM fence WHERE t.process_guid = $2 AND t.xmin = $3
  RETURNING t.xmin
)
SELECT (SELECT count(*) FROM fence) AS fenced, (SELECT xmin FROM resealed) AS version
