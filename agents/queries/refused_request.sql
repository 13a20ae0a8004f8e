-- title: A refused record
-- meaning: One refused record by its place on the dead letter topic, with what is kept of its key and value.
-- unit: records
-- params: kafka_partition, kafka_offset
SELECT
    refused_at AS at,
    concat(toString(kafka_partition), '/', toString(kafka_offset)) AS id,
    stage,
    code,
    field,
    message,
    user_id,
    job_id,
    if(source_topic = '', '', concat(source_topic, '/', toString(source_partition), '/', toString(source_offset))) AS source,
    source_at,
    key,
    value,
    value_bytes
FROM refused_requests
WHERE kafka_partition = {kafka_partition:UInt32} AND kafka_offset = {kafka_offset:UInt64}
LIMIT 1
