-- A cancel of a job that nobody has asked for yet is told by an event without a state (`cancel_kept`,
-- and `command_refused` when it is forgotten). Every other event still needs one.
ALTER TABLE job_events DROP CONSTRAINT IF EXISTS has_an_instant;
ALTER TABLE job_events ADD CONSTRAINT IF NOT EXISTS has_a_state CHECK occurred_at > 0
    AND (state_after != '' OR (sequence = 0 AND event IN ('cancel_kept', 'command_refused')));
