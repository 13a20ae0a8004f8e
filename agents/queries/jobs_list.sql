-- title: Jobs
-- meaning: Jobs by filter, the newest request first; '' stands for no filter. before_at, before_user_id and before_job_id name the last row of the page before.
-- unit: jobs
-- params: status, type, queue, user_id, job_id, before_at, before_user_id, before_job_id, limit
SELECT
    user_id,
    job_id,
    type,
    queue,
    priority,
    status,
    reason,
    error_code,
    error_message,
    run,
    attempts,
    requested_at,
    updated_at,
    finished_at,
    due_at,
    wait_ms,
    run_ms,
    worker_id
FROM jobs
WHERE ({status:String} = '' OR status IN splitByChar(',', {status:String}))
    AND ({type:String} = '' OR type = {type:String})
    AND ({queue:String} = '' OR queue = {queue:String})
    AND ({user_id:String} = '' OR user_id = {user_id:String})
    AND ({job_id:String} = '' OR startsWith(job_id, {job_id:String}))
    AND (requested_at, user_id, job_id) < ({before_at:DateTime64(3, 'UTC')}, {before_user_id:String}, {before_job_id:String})
ORDER BY requested_at DESC, user_id DESC, job_id DESC
LIMIT {limit:UInt32}
