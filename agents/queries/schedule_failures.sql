-- title: Schedules that fail
-- meaning: Of the last ten jobs in the window of each schedule that ran to an end, how many have failed; schedules without a failure are left out.
-- unit: jobs
-- params: since, limit
SELECT
    substring(user_id, 10) AS schedule,
    count() AS runs,
    countIf(status = 'failed') AS failed,
    argMaxIf(error_code, incarnation, status = 'failed') AS last_error_code,
    argMaxIf(job_id, incarnation, status = 'failed') AS last_failed_job_id,
    max(incarnation) = maxIf(incarnation, status = 'failed') AS is_last_failed
FROM
(
    SELECT *
    FROM
    (
        -- The latest row of each: jobs_latest may hold older ones until they are merged.
        SELECT user_id, job_id, incarnation, status, error_code
        FROM jobs_latest
        WHERE requested_at >= {since:DateTime64(3, 'UTC')} AND startsWith(user_id, 'schedule:')
        ORDER BY sequence DESC
        LIMIT 1 BY user_id, job_id, incarnation
    )
    WHERE status IN ('succeeded', 'failed')
    ORDER BY incarnation DESC, job_id DESC
    LIMIT 10 BY user_id
)
GROUP BY user_id
HAVING failed > 0
ORDER BY failed DESC, schedule
LIMIT {limit:UInt32}
