-- title: A refused record
-- meaning: One refused record by its place on the dead letter topic, with what is kept of its key and value.
-- unit: records
-- params: kafka_partition, kafka_offset
SELECT
    source_at,
    key,
    value,
    -- include: refused_columns
FROM refused_requests
WHERE kafka_partition = {kafka_partition:UInt32} AND kafka_offset = {kafka_offset:UInt64}
LIMIT 1
