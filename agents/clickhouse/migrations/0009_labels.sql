-- What people find jobs by: tags, batch and parent, which each event of such a job brings. Events
-- from before have none of them, and a job from before gets them with its next event.
ALTER TABLE job_events
    ADD COLUMN IF NOT EXISTS tags Array(String) AFTER data,
    ADD COLUMN IF NOT EXISTS batch_id String CODEC(ZSTD(1)) AFTER tags,
    ADD COLUMN IF NOT EXISTS parent_job_id String CODEC(ZSTD(1)) AFTER batch_id;

ALTER TABLE jobs_latest
    ADD COLUMN IF NOT EXISTS tags Array(String) AFTER worker_id,
    ADD COLUMN IF NOT EXISTS batch_id String CODEC(ZSTD(1)) AFTER tags,
    ADD COLUMN IF NOT EXISTS parent_job_id String CODEC(ZSTD(1)) AFTER batch_id;

ALTER TABLE jobs_latest_feed MODIFY QUERY SELECT
    user_id,
    job_id,
    type,
    queue,
    priority,
    state_after AS status,
    reason,
    error_code,
    error_message,
    run,
    attempt AS attempts,
    sequence,
    incarnation,
    fromUnixTimestamp64Milli(incarnation, 'UTC') AS requested_at,
    occurred_at AS updated_at,
    if(status IN ('succeeded', 'failed', 'cancelled', 'skipped', 'expired'), occurred_at, NULL) AS finished_at,
    due_at,
    wait_ms,
    run_ms,
    worker_id,
    tags,
    batch_id,
    parent_job_id
FROM job_events
WHERE sequence > 0;

CREATE OR REPLACE VIEW jobs AS
SELECT
    user_id, job_id, type, queue, priority, status, reason, error_code, error_message, run, attempts,
    sequence, incarnation, requested_at, updated_at, finished_at, due_at, wait_ms, run_ms, worker_id,
    tags, batch_id, parent_job_id
FROM jobs_latest FINAL
SETTINGS do_not_merge_across_partitions_select_final = 1;
