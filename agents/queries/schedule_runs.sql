-- title: Last ticks of schedules
-- meaning: The latest job of each schedule whose user is in `user_ids` (with commas), by hand or by the clock, and its state.
-- unit: jobs
-- params: user_ids, limit
SELECT
    substring(user_id, 10) AS schedule,
    user_id,
    job_id,
    status,
    reason,
    error_code,
    requested_at,
    finished_at
FROM
(
    SELECT *
    FROM jobs_latest
    PREWHERE (user_id, incarnation) IN
    (
        -- Narrow columns first: this reads one row for each of their jobs.
        SELECT user_id, max(incarnation)
        FROM jobs_latest
        WHERE user_id IN splitByChar(',', {user_ids:String})
        GROUP BY user_id
    )
    ORDER BY job_id DESC, sequence DESC
    LIMIT 1 BY user_id
)
ORDER BY schedule
LIMIT {limit:UInt32}
