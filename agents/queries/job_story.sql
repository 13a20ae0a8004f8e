-- title: A job's story
-- meaning: Every event of one job, oldest first; user_id '' stands for any user. offset pages through long stories.
-- unit: events
-- params: job_id, user_id, limit, offset
SELECT
    event,
    occurred_at,
    user_id,
    job_id,
    type,
    queue,
    priority,
    incarnation,
    run,
    sequence,
    attempt,
    state_before,
    state_after,
    reason,
    error_code,
    error_message,
    error_retryable,
    worker_id,
    due_at,
    wait_ms,
    run_ms,
    cause_topic,
    cause_partition,
    cause_offset,
    kafka_partition,
    kafka_offset,
    data
FROM job_events
WHERE job_id = {job_id:String} AND ({user_id:String} = '' OR user_id = {user_id:String})
ORDER BY user_id, occurred_at, kafka_offset, sequence
LIMIT {limit:UInt32} OFFSET {offset:UInt32}
