-- Records that were refused: what jobs.dead tells of each, but for failed jobs, which are in `jobs`.
-- One row a record of jobs.dead, by partition and offset; nothing is ever changed.
CREATE TABLE IF NOT EXISTS refused_requests
(
    kafka_partition UInt32,
    kafka_offset UInt64,
    refused_at DateTime64(3, 'UTC'),
    stage LowCardinality(String),
    code LowCardinality(String),
    message String CODEC(ZSTD(1)),
    field String CODEC(ZSTD(1)),
    source_topic LowCardinality(String),
    source_partition Nullable(UInt32),
    source_offset Nullable(UInt64),
    source_at Nullable(DateTime64(3, 'UTC')),
    user_id String CODEC(ZSTD(1)),
    job_id String CODEC(ZSTD(1)),
    key String CODEC(ZSTD(1)),
    value String CODEC(ZSTD(1)),
    value_bytes UInt64
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(refused_at)
ORDER BY (refused_at, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 20000;
