-- The minute roll-up: how many events of each kind, and the sums of their times.
CREATE TABLE IF NOT EXISTS job_minutes
(
    minute DateTime('UTC'),
    queue LowCardinality(String),
    type LowCardinality(String),
    event LowCardinality(String),
    reason LowCardinality(String),
    error_code LowCardinality(String),
    events UInt64,
    wait_ms_sum UInt64,
    run_ms_sum UInt64
)
ENGINE = SummingMergeTree((events, wait_ms_sum, run_ms_sum))
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, queue, type, event, reason, error_code)
SETTINGS non_replicated_deduplication_window = 20000;

CREATE MATERIALIZED VIEW IF NOT EXISTS job_minutes_feed TO job_minutes AS
SELECT
    toStartOfMinute(occurred_at) AS minute,
    queue,
    type,
    event,
    reason,
    error_code,
    count() AS events,
    sum(ifNull(wait_ms, 0)) AS wait_ms_sum,
    sum(ifNull(run_ms, 0)) AS run_ms_sum
FROM job_events
GROUP BY minute, queue, type, event, reason, error_code;
