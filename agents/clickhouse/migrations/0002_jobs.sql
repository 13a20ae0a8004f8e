-- The latest state of every job: its latest event wins, by sequence. `jobs` is the view to read; the
-- table below it may hold several rows of a job until they are merged.
--
-- Order: by the hour of the request, so that a window of time reads little and the rows of ended
-- jobs lie apart from those that still change; within it by job. A reuse of a job_id after its
-- retention is a job of its own, with an incarnation of its own.
CREATE TABLE IF NOT EXISTS jobs_latest
(
    user_id String CODEC(ZSTD(1)),
    job_id String CODEC(ZSTD(1)),
    type LowCardinality(String),
    queue LowCardinality(String),
    priority LowCardinality(String),
    status LowCardinality(String),
    reason LowCardinality(String),
    error_code LowCardinality(String),
    error_message String CODEC(ZSTD(1)),
    run UInt32,
    attempts UInt32,
    sequence UInt32,
    incarnation UInt64,
    requested_at DateTime64(3, 'UTC'),
    updated_at DateTime64(3, 'UTC'),
    finished_at Nullable(DateTime64(3, 'UTC')),
    due_at Nullable(DateTime64(3, 'UTC')),
    wait_ms Nullable(UInt64),
    run_ms Nullable(UInt64),
    worker_id LowCardinality(String),
    INDEX job_id_index job_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(sequence)
PARTITION BY toYYYYMM(requested_at)
ORDER BY (toStartOfHour(requested_at), user_id, job_id, incarnation)
SETTINGS non_replicated_deduplication_window = 20000;

CREATE MATERIALIZED VIEW IF NOT EXISTS jobs_latest_feed TO jobs_latest AS
SELECT
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
    worker_id
FROM job_events
WHERE sequence > 0;

CREATE VIEW IF NOT EXISTS jobs AS
SELECT
    user_id, job_id, type, queue, priority, status, reason, error_code, error_message, run, attempts,
    sequence, incarnation, requested_at, updated_at, finished_at, due_at, wait_ms, run_ms, worker_id
FROM jobs_latest FINAL
-- A job never changes its month, so that months need no merging with each other.
SETTINGS do_not_merge_across_partitions_select_final = 1;
