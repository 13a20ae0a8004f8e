-- title: Queues
-- meaning: Each queue now: waiting and in-flight jobs, the age of its oldest waiting job, and what ended in the window.
-- unit: jobs
-- params: since, until, limit
SELECT
    queue,
    countIf(status IN ('scheduled', 'pending', 'retrying')) AS waiting,
    countIf(status IN ('dispatched', 'running')) AS in_flight,
    minIf(requested_at, status IN ('pending', 'dispatched')) AS oldest,
    if(countIf(status IN ('pending', 'dispatched')) = 0, NULL, oldest) AS oldest_waiting_at,
    countIf(finished_at >= {since:DateTime64(3, 'UTC')} AND finished_at < {until:DateTime64(3, 'UTC')}) AS ended,
    countIf(status = 'failed' AND finished_at >= {since:DateTime64(3, 'UTC')} AND finished_at < {until:DateTime64(3, 'UTC')}) AS failed
FROM jobs
WHERE finished_at IS NULL OR finished_at >= {since:DateTime64(3, 'UTC')}
GROUP BY queue
ORDER BY waiting + in_flight DESC, queue
LIMIT {limit:UInt32}
