-- title: Wait and run times
-- meaning: p50, p95 and p99 of the wait (from the request to the last start) and of the run (of the last attempt), over jobs that ran to an end in the window.
-- unit: ms
-- params: since, until
SELECT * EXCEPT (wait, run)
FROM
(
    SELECT
        count() AS jobs,
        quantilesTDigest(0.5, 0.95, 0.99)(wait_ms) AS wait,
        quantilesTDigest(0.5, 0.95, 0.99)(run_ms) AS run,
        if(jobs = 0, NULL, wait[1]) AS wait_p50_ms,
        if(jobs = 0, NULL, wait[2]) AS wait_p95_ms,
        if(jobs = 0, NULL, wait[3]) AS wait_p99_ms,
        if(jobs = 0, NULL, run[1]) AS run_p50_ms,
        if(jobs = 0, NULL, run[2]) AS run_p95_ms,
        if(jobs = 0, NULL, run[3]) AS run_p99_ms
    FROM job_events
    WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
        AND event IN ('succeeded', 'failed') AND wait_ms IS NOT NULL
)
