-- title: Errors by code
-- meaning: Failed attempts, and jobs that failed without an attempt, by type and error code, with the latest message.
-- unit: failures
-- params: since, until, limit
SELECT
    type,
    error_code,
    countIf(event = 'attempt_failed') AS attempts_failed,
    countIf(event = 'failed') AS jobs_failed,
    max(occurred_at) AS last_at,
    argMax(error_message, occurred_at) AS last_message
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event IN ('attempt_failed', 'failed')
GROUP BY type, error_code
ORDER BY attempts_failed + jobs_failed DESC, type, error_code
LIMIT {limit:UInt32}
