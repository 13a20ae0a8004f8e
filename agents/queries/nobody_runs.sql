-- title: Jobs that nobody can run
-- meaning: What waits for a worker, by queue, type and cause: the queue has no living worker, or those that it has do not run the type. A backlog without workers has at most 1,000 jobs of each ledger partition here.
-- unit: jobs
-- params: limit
SELECT
    queue,
    type,
    reason,
    count() AS jobs,
    min(updated_at) AS since,
    argMin(job_id, (updated_at, job_id)) AS first_job_id,
    argMin(user_id, (updated_at, job_id)) AS first_user_id
FROM
(
    -- The latest row of each: jobs_latest may hold older ones until they are merged.
    SELECT *
    FROM jobs_latest
    PREWHERE incarnation IN
    (
        SELECT incarnation
        FROM jobs_latest
        WHERE status = 'scheduled' AND reason IN ('queue_not_served', 'type_not_run', 'unknown_type')
    )
    ORDER BY sequence DESC
    LIMIT 1 BY user_id, job_id, incarnation
)
WHERE status = 'scheduled' AND reason IN ('queue_not_served', 'type_not_run', 'unknown_type')
GROUP BY queue, type, reason
ORDER BY jobs DESC, queue, type, reason
LIMIT {limit:UInt32}
