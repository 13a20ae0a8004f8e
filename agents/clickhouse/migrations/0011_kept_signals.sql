-- A signal for a job that nobody has asked for yet is told by an event without a state, as a cancel is.
ALTER TABLE job_events DROP CONSTRAINT IF EXISTS has_a_state;
ALTER TABLE job_events ADD CONSTRAINT IF NOT EXISTS has_a_state_or_is_kept CHECK occurred_at > 0
    AND (state_after != '' OR (sequence = 0
        AND event IN ('cancel_kept', 'signal_kept', 'command_refused')));
