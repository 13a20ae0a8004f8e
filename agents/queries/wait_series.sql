-- title: Wait time
-- meaning: From the request to the last start, percentiles over the jobs that ran to an end in each step.
-- unit: ms
-- params: since, until, step_seconds
SELECT
    toStartOfInterval(occurred_at, toIntervalSecond({step_seconds:UInt32})) AS at,
    toNullable(quantileTDigest(0.5)(wait_ms)) AS p50,
    toNullable(quantileTDigest(0.95)(wait_ms)) AS p95,
    toNullable(quantileTDigest(0.99)(wait_ms)) AS p99
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event IN ('succeeded', 'failed') AND wait_ms IS NOT NULL
GROUP BY at
ORDER BY at WITH FILL
    FROM toStartOfInterval({since:DateTime64(3, 'UTC')}, toIntervalSecond({step_seconds:UInt32}))
    TO toStartOfInterval({until:DateTime64(3, 'UTC')}, toIntervalSecond({step_seconds:UInt32}))
    STEP toIntervalSecond({step_seconds:UInt32})
