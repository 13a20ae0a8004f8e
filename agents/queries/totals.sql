-- title: Totals
-- meaning: What happened in the window: jobs accepted, ended by status, attempts that failed, retries.
-- unit: jobs
-- params: since, until
SELECT
    countIf(event = 'requested') AS requested,
    countIf(event IN ('succeeded', 'failed', 'skipped', 'cancelled', 'expired')) AS ended,
    countIf(event = 'succeeded') AS succeeded,
    countIf(event = 'failed') AS failed,
    countIf(event = 'skipped') AS skipped,
    countIf(event = 'cancelled') AS cancelled,
    countIf(event = 'expired') AS expired,
    countIf(event = 'attempt_failed') AS attempts_failed,
    countIf(event IN ('attempt_succeeded', 'attempt_failed')) AS attempts_ended,
    countIf(event = 'retry_scheduled') AS retries,
    countIf(event = 'rescued') AS rescues,
    ended / greatest(dateDiff('millisecond', {since:DateTime64(3, 'UTC')}, {until:DateTime64(3, 'UTC')}) / 1000, 1) AS ended_per_second,
    if(attempts_ended = 0, NULL, 100 * attempts_failed / attempts_ended) AS error_percent
FROM job_events
WHERE occurred_at >= {since:DateTime64(3, 'UTC')} AND occurred_at < {until:DateTime64(3, 'UTC')}
