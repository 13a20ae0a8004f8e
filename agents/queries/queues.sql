-- title: Queues
-- meaning: Each queue: jobs that wait, that are in flight and that are suspended now, and what ended in the window with its p95 of the wait. The queue '' has jobs whose type no worker has told of.
-- unit: jobs
-- params: since, until, limit
WITH moves AS
(
    SELECT queue, state_before, state_after, toInt64(count()) AS moves
    FROM job_events
    WHERE sequence > 0 AND queue != ''
    GROUP BY queue, state_before, state_after
    UNION ALL
    -- What a job did before its queue was known belongs to the queue that it came to.
    SELECT known.queue, state_before, state_after, toInt64(count()) AS moves
    FROM job_events AS early
    LEFT JOIN
    (
        SELECT user_id, job_id, incarnation, max(queue) AS queue
        FROM job_events
        WHERE event = 'scheduled'
            AND (user_id, job_id, incarnation) IN (SELECT user_id, job_id, incarnation FROM job_events WHERE queue = '')
        GROUP BY user_id, job_id, incarnation
    ) AS known USING (user_id, job_id, incarnation)
    WHERE early.queue = '' AND early.sequence > 0
    GROUP BY known.queue, state_before, state_after
),
now AS
(
    SELECT
        queue,
        sumIf(change.2, change.1 IN ('scheduled', 'pending', 'retrying')) AS waiting,
        sumIf(change.2, change.1 IN ('dispatched', 'running')) AS in_flight,
        sumIf(change.2, change.1 = 'awaiting') AS awaiting
    FROM moves
    ARRAY JOIN [(state_after, moves), (state_before, -moves)] AS change
    GROUP BY queue
),
recent AS
(
    SELECT
        queue,
        count() AS ended,
        countIf(event = 'failed') AS failed,
        quantileTDigest(0.95)(wait_ms) AS p95
    FROM job_events
    WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
        AND event IN ('succeeded', 'failed', 'skipped', 'cancelled', 'expired')
    GROUP BY queue
)
SELECT
    now.queue AS queue,
    now.waiting AS waiting,
    now.in_flight AS in_flight,
    now.awaiting AS awaiting,
    recent.ended AS ended,
    recent.failed AS failed,
    if(isNaN(recent.p95) OR recent.ended = 0, NULL, recent.p95) AS wait_p95_ms
FROM now
LEFT JOIN recent ON recent.queue = now.queue
WHERE waiting > 0 OR in_flight > 0 OR awaiting > 0 OR ended > 0
ORDER BY waiting + in_flight + awaiting DESC, queue
LIMIT {limit:UInt32}
