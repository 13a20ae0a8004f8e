-- title: Error rate
-- meaning: Share of the attempts ended in each step that failed, by type.
-- unit: %
-- params: since, until, step_seconds
SELECT
    toStartOfInterval(occurred_at, toIntervalSecond({step_seconds:UInt32})) AS at,
    type,
    100 * countIf(event = 'attempt_failed') / count() AS error_percent
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event IN ('attempt_succeeded', 'attempt_failed')
GROUP BY at, type
ORDER BY at, type
