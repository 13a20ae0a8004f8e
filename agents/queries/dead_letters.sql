-- title: Dead letters
-- meaning: Jobs whose latest state is failed, the newest first. A redriven job leaves this list. Records that were refused before they became a job are on the dead letter topic only.
-- unit: jobs
-- params: limit
SELECT
    finished_at AS at,
    user_id,
    job_id,
    type,
    queue,
    attempts,
    run,
    reason,
    error_code,
    error_message
FROM jobs
WHERE status = 'failed'
ORDER BY finished_at DESC, user_id, job_id
LIMIT {limit:UInt32}
