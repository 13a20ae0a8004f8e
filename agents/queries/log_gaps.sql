-- title: Missing offsets
-- meaning: Records that retention deleted before the sink had read them, newest first: their rows are missing. Holes in the offsets that transactions make are none.
-- unit: offsets
-- params: limit
SELECT
    noticed_at,
    topic,
    kafka_partition,
    first_offset,
    last_offset,
    last_offset - first_offset + 1 AS offsets
FROM log_gaps FINAL
ORDER BY noticed_at DESC, topic, kafka_partition, first_offset
LIMIT {limit:UInt32}
