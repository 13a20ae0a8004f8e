-- Offsets that retention deleted before the sink had read them: rows that will never be there. A gap
-- that is noticed again before anything behind it was read is the same one, and may have grown.
CREATE TABLE IF NOT EXISTS log_gaps
(
    topic LowCardinality(String),
    kafka_partition UInt32,
    first_offset UInt64,
    last_offset UInt64,
    noticed_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(last_offset)
ORDER BY (topic, kafka_partition, first_offset)
SETTINGS non_replicated_deduplication_window = 20000;
