-- title: Waiting and running now
-- meaning: Jobs that have not ended: waiting (scheduled, pending, retrying), in flight (dispatched, running) and awaiting (suspended by their handlers).
-- unit: jobs
-- params:
SELECT
    sumIf(change.2, change.1 IN ('scheduled', 'pending', 'retrying')) AS waiting,
    sumIf(change.2, change.1 IN ('dispatched', 'running')) AS in_flight,
    sumIf(change.2, change.1 = 'awaiting') AS awaiting,
    sumIf(change.2, change.1 = 'scheduled') AS scheduled,
    sumIf(change.2, change.1 = 'pending') AS pending,
    sumIf(change.2, change.1 = 'retrying') AS retrying,
    sumIf(change.2, change.1 = 'dispatched') AS dispatched,
    sumIf(change.2, change.1 = 'running') AS running,
    sumIf(change.2, change.1 = 'failed') AS dead_letters,
    sumIf(change.2, change.1 != '') AS jobs
FROM
(
    SELECT
        state_before,
        state_after,
        toInt64(count()) AS moves
    FROM job_events
    WHERE sequence > 0
    GROUP BY state_before, state_after
)
ARRAY JOIN [(state_after, moves), (state_before, -moves)] AS change
