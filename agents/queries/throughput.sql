-- title: Throughput
-- meaning: Jobs that ended, per second, by terminal status.
-- unit: jobs/s
-- params: since, until, step_seconds
SELECT
    toStartOfInterval(occurred_at, toIntervalSecond({step_seconds:UInt32})) AS at,
    countIf(event = 'succeeded') / {step_seconds:UInt32} AS succeeded,
    countIf(event = 'failed') / {step_seconds:UInt32} AS failed,
    countIf(event = 'skipped') / {step_seconds:UInt32} AS skipped,
    countIf(event = 'cancelled') / {step_seconds:UInt32} AS cancelled,
    countIf(event = 'expired') / {step_seconds:UInt32} AS expired
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event IN ('succeeded', 'failed', 'skipped', 'cancelled', 'expired')
GROUP BY at
ORDER BY at WITH FILL
    FROM toStartOfInterval({since:DateTime64(3, 'UTC')}, toIntervalSecond({step_seconds:UInt32}))
    TO toStartOfInterval({until:DateTime64(3, 'UTC')}, toIntervalSecond({step_seconds:UInt32}))
    STEP toIntervalSecond({step_seconds:UInt32})
