-- title: Dead letters by cause
-- meaning: Jobs whose latest state is failed, by type and error code: how many, since when, and one of them.
-- unit: jobs
-- params: limit
SELECT
    type,
    error_code,
    count() AS dead_jobs,
    min(occurred_at) AS first_at,
    max(occurred_at) AS last_at,
    argMax(error_message, occurred_at) AS last_message,
    argMax(user_id, occurred_at) AS last_user_id,
    argMax(job_id, occurred_at) AS last_job_id
FROM
(
    -- Only a redrive leads out of failed, so these two events tell the state.
    SELECT event, type, error_code, error_message, user_id, job_id, occurred_at
    FROM job_events
    WHERE event IN ('failed', 'redriven')
    ORDER BY sequence DESC
    LIMIT 1 BY user_id, job_id, incarnation
)
WHERE event = 'failed'
GROUP BY type, error_code
ORDER BY dead_jobs DESC, type, error_code
LIMIT {limit:UInt32}
