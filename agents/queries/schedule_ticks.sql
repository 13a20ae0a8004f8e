-- title: Latest ticks by the clock
-- meaning: The latest job in the window that the clock asked for, of each schedule; its id ends with the instant that was due.
-- unit: jobs
-- params: since, limit
SELECT
    substring(user_id, 10) AS schedule,
    argMax(job_id, (incarnation, job_id)) AS last_job_id,
    max(requested_at) AS last_requested_at
FROM jobs_latest
WHERE requested_at >= {since:DateTime64(3, 'UTC')} AND startsWith(user_id, 'schedule:')
    -- What somebody asked for by hand ends with the id of that command.
    AND position(job_id, '!') = 0
GROUP BY user_id
ORDER BY schedule
LIMIT {limit:UInt32}
