-- title: Dead letters
-- meaning: Jobs whose latest state is failed, the newest first. A redriven job leaves this list. Records that were refused are in the panel of refused records.
-- unit: jobs
-- params: limit
SELECT
    occurred_at AS at,
    user_id,
    job_id,
    type,
    queue,
    attempt AS attempts,
    run,
    reason,
    error_code,
    error_message
FROM
(
    -- Only a redrive leads out of failed, so these two events tell the state.
    SELECT event, occurred_at, user_id, job_id, type, queue, attempt, run, reason, error_code, error_message
    FROM job_events
    WHERE event IN ('failed', 'redriven')
    ORDER BY sequence DESC
    LIMIT 1 BY user_id, job_id, incarnation
)
WHERE event = 'failed'
ORDER BY at DESC, user_id, job_id
LIMIT {limit:UInt32}
