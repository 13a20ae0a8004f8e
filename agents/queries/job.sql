-- title: A job
-- meaning: The latest state of the jobs with this id; user_id '' stands for any user, and several users may have used the same id.
-- unit: jobs
-- params: job_id, user_id, limit
SELECT *
FROM
(
    SELECT *
    FROM jobs_latest
    WHERE job_id = {job_id:String} AND ({user_id:String} = '' OR user_id = {user_id:String})
    ORDER BY sequence DESC
    LIMIT 1 BY user_id, job_id, incarnation
)
ORDER BY incarnation DESC, user_id
LIMIT {limit:UInt32}
