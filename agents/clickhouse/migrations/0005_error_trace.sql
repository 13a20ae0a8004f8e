-- Where a failed attempt raised. It is read out of `data` when somebody asks: nothing is stored
-- twice, and an insert costs the same as before.
ALTER TABLE job_events ADD COLUMN IF NOT EXISTS error_trace String
    ALIAS if(event = 'attempt_failed', JSONExtractString(data, 'trace'), '') AFTER error_retryable;
