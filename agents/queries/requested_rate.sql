-- title: Requests
-- meaning: Jobs that were accepted and jobs that ended, per second: a gap between them is a growing backlog.
-- unit: jobs/s
-- params: since, until, step_seconds
SELECT
    toStartOfInterval(occurred_at, toIntervalSecond({step_seconds:UInt32})) AS at,
    countIf(event IN ('requested', 'redriven')) / {step_seconds:UInt32} AS requested,
    countIf(event NOT IN ('requested', 'redriven')) / {step_seconds:UInt32} AS ended
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event IN ('requested', 'redriven', 'succeeded', 'failed', 'skipped', 'cancelled', 'expired')
GROUP BY at
ORDER BY at WITH FILL
    FROM toStartOfInterval({since:DateTime64(3, 'UTC')}, toIntervalSecond({step_seconds:UInt32}))
    TO toStartOfInterval({until:DateTime64(3, 'UTC')}, toIntervalSecond({step_seconds:UInt32}))
    STEP toIntervalSecond({step_seconds:UInt32})
