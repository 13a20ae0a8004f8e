-- title: Error rate by type
-- meaning: Of the attempts that ended in the window, the share that failed; and of the jobs that ran to an end, the share that failed for good.
-- unit: %
-- params: since, until, limit
SELECT
    type,
    countIf(event IN ('attempt_succeeded', 'attempt_failed')) AS attempts,
    countIf(event = 'attempt_failed') AS attempts_failed,
    if(attempts = 0, 0, 100 * attempts_failed / attempts) AS error_percent,
    countIf(event IN ('succeeded', 'failed')) AS jobs,
    countIf(event = 'failed') AS jobs_failed,
    if(jobs = 0, 0, 100 * jobs_failed / jobs) AS jobs_failed_percent
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event IN ('attempt_succeeded', 'attempt_failed', 'succeeded', 'failed')
GROUP BY type
ORDER BY attempts_failed DESC, attempts DESC, type
LIMIT {limit:UInt32}
