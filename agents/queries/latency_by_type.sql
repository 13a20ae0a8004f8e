-- title: Wait and run times by type
-- meaning: p50, p95 and p99 of wait and run by type, over jobs that ran to an end in the window.
-- unit: ms
-- params: since, until, limit
SELECT * EXCEPT (wait, run)
FROM
(
    SELECT
        type,
        count() AS jobs,
        quantilesTDigest(0.5, 0.95, 0.99)(wait_ms) AS wait,
        quantilesTDigest(0.5, 0.95, 0.99)(run_ms) AS run,
        wait[1] AS wait_p50_ms,
        wait[2] AS wait_p95_ms,
        wait[3] AS wait_p99_ms,
        run[1] AS run_p50_ms,
        run[2] AS run_p95_ms,
        run[3] AS run_p99_ms
    FROM job_events
    WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
        AND event IN ('succeeded', 'failed') AND wait_ms IS NOT NULL
    GROUP BY type
)
ORDER BY jobs DESC, type
LIMIT {limit:UInt32}
