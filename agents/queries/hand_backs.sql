-- title: Hand-backs
-- meaning: Attempts in the window that workers gave back without beginning them, by queue, type and cause, and the most that one job has had in a run.
-- unit: attempts
-- params: since, until, limit
SELECT
    queue,
    type,
    reason,
    count() AS hand_backs,
    uniqExact(user_id, job_id) AS jobs,
    max(JSONExtractUInt(data, 'returns')) AS most_of_a_job
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
    AND event = 'returned'
GROUP BY queue, type, reason
ORDER BY hand_backs DESC, queue, type, reason
LIMIT {limit:UInt32}
