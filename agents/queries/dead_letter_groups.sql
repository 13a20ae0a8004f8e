-- title: Dead letters by cause
-- meaning: Jobs whose latest state is failed, by type and error code: how many, since when, and one of them.
-- unit: jobs
-- params: limit
SELECT
    type,
    error_code,
    count() AS dead_jobs,
    min(finished_at) AS first_at,
    max(finished_at) AS last_at,
    argMax(error_message, finished_at) AS last_message,
    argMax(user_id, finished_at) AS last_user_id,
    argMax(job_id, finished_at) AS last_job_id
FROM jobs
WHERE status = 'failed'
GROUP BY type, error_code
ORDER BY dead_jobs DESC, type, error_code
LIMIT {limit:UInt32}
