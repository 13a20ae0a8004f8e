-- title: Types and queues
-- meaning: Every type and queue that has been seen, for the filters of lists.
-- unit:
-- params: limit
SELECT
    type,
    queue,
    sum(events) AS total
FROM job_minutes
GROUP BY type, queue
ORDER BY type, queue
LIMIT {limit:UInt32}
