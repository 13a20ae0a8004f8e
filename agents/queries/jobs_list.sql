-- title: Jobs
-- meaning: Jobs by filter, the newest request first; '' stands for no filter. before_incarnation, before_user_id and before_job_id name the last row of the page before. Only the newest `candidates` rows that may fit are looked at, so an answer shorter than limit asks for more candidates.
-- unit: jobs
-- params: status, type, queue, user_id, job_id, tag, batch, parent, before_incarnation, before_user_id, before_job_id, candidates, limit
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
    worker_id,
    tags,
    batch_id,
    parent_job_id,
    incarnation
FROM
(
    -- The latest row of each: jobs_latest may hold older ones until they are merged.
    SELECT *
    FROM jobs_latest
    PREWHERE incarnation IN
    (
        -- Narrow columns first: this reads one row for each job that there is.
        SELECT incarnation
        FROM jobs_latest
        WHERE incarnation <= {before_incarnation:UInt64}
            AND ({status:String} = '' OR status IN splitByChar(',', {status:String}))
            AND ({type:String} = '' OR type = {type:String})
            AND ({queue:String} = '' OR queue = {queue:String})
            AND ({user_id:String} = '' OR user_id = {user_id:String})
            AND ({job_id:String} = '' OR startsWith(job_id, {job_id:String}))
            AND ({tag:String} = '' OR has(tags, {tag:String}))
            AND ({batch:String} = '' OR batch_id = {batch:String})
            AND ({parent:String} = '' OR parent_job_id = {parent:String})
        ORDER BY incarnation DESC
        LIMIT {candidates:UInt32}
    )
    ORDER BY sequence DESC
    LIMIT 1 BY user_id, job_id, incarnation
)
WHERE (incarnation, user_id, job_id) < ({before_incarnation:UInt64}, {before_user_id:String}, {before_job_id:String})
    AND ({status:String} = '' OR status IN splitByChar(',', {status:String}))
    AND ({type:String} = '' OR type = {type:String})
    AND ({queue:String} = '' OR queue = {queue:String})
    AND ({user_id:String} = '' OR user_id = {user_id:String})
    AND ({job_id:String} = '' OR startsWith(job_id, {job_id:String}))
    AND ({tag:String} = '' OR has(tags, {tag:String}))
    AND ({batch:String} = '' OR batch_id = {batch:String})
    AND ({parent:String} = '' OR parent_job_id = {parent:String})
ORDER BY incarnation DESC, user_id DESC, job_id DESC
LIMIT {limit:UInt32}
