-- title: Last failures
-- meaning: The latest jobs that failed for good, with the reason and the error of their last attempt.
-- unit: jobs
-- params: since, until, limit
SELECT
    occurred_at AS at,
    user_id,
    job_id,
    type,
    queue,
    attempt AS attempts,
    reason,
    error_code,
    error_message
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event = 'failed'
ORDER BY occurred_at DESC, kafka_partition, kafka_offset DESC
LIMIT {limit:UInt32}
