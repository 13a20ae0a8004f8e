-- title: Jobs by status
-- meaning: How many jobs are in each state now: every transition adds one to the state after it and takes one from the state before it, so that no row needs merging first.
-- unit: jobs
-- params:
SELECT
    change.1 AS status,
    sum(change.2) AS jobs
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
WHERE status != ''
GROUP BY status
HAVING jobs != 0
ORDER BY jobs DESC, status
