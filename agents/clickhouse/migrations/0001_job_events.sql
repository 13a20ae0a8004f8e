-- Every transition of every job, as the log has it. One row an event; nothing is ever changed.
--
-- The sink inserts the records of the log as they are (JSON), with the partition and the offset put
-- in front. What is nested there comes in through the EPHEMERAL columns, which are not stored.
--
-- Order: by time in steps of five minutes, since panels ask for windows; within a step by job, since
-- neighbours compress well. A job's story is found by the index on job_id. How many jobs are in
-- which state now is the sum of all moves there ever were: the projection keeps them counted, and
-- ClickHouse uses it by itself for queries of that form (WHERE sequence > 0).
--
-- The constraints refuse what is no event, and a second object in one record: it has no position.
CREATE TABLE IF NOT EXISTS job_events
(
    kafka_partition UInt32 DEFAULT 4294967295,
    kafka_offset UInt64,
    event_id String CODEC(ZSTD(1)),
    event LowCardinality(String),
    job_id String CODEC(ZSTD(1)),
    user_id String CODEC(ZSTD(1)),
    type LowCardinality(String),
    queue LowCardinality(String),
    priority LowCardinality(String),
    incarnation UInt64,
    run UInt32,
    sequence UInt32,
    attempt UInt32,
    epoch UInt32,
    occurred_at DateTime64(3, 'UTC'),
    state_before LowCardinality(String),
    state_after LowCardinality(String),
    reason LowCardinality(String),
    error_code LowCardinality(String) DEFAULT error.code,
    error_message String DEFAULT error.message,
    error_retryable Bool DEFAULT error.retryable,
    worker_id LowCardinality(String),
    due_at Nullable(DateTime64(3, 'UTC')),
    wait_ms Nullable(UInt64),
    run_ms Nullable(UInt64),
    cause_topic LowCardinality(String) DEFAULT cause.topic,
    cause_partition Nullable(UInt32) DEFAULT if(cause.topic = '', NULL, cause.partition),
    cause_offset Nullable(UInt64) DEFAULT if(cause.topic = '', NULL, cause.offset),
    data String CODEC(ZSTD(1)),
    schema_version UInt32 EPHEMERAL,
    error Tuple(code String, message String, retryable Bool) EPHEMERAL,
    cause Tuple(topic String, partition UInt32, offset UInt64) EPHEMERAL,
    INDEX job_id_index job_id TYPE bloom_filter(0.01) GRANULARITY 1,
    PROJECTION moves
    (
        SELECT queue, state_before, state_after, sequence > 0, count()
        GROUP BY queue, state_before, state_after, sequence > 0
    ),
    CONSTRAINT has_a_position CHECK kafka_partition != 4294967295,
    CONSTRAINT names_a_job CHECK event_id != '' AND event != '' AND job_id != '' AND user_id != '',
    CONSTRAINT has_an_instant CHECK occurred_at > 0 AND state_after != ''
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (toStartOfFiveMinutes(occurred_at), user_id, job_id, incarnation, sequence)
SETTINGS non_replicated_deduplication_window = 20000;
