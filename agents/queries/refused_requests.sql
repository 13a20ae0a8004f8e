-- title: Refused records
-- meaning: Requests, commands and other records that were refused, the newest first: what was wrong, and where the record stands. A refused request never became a job that ran.
-- unit: records
-- params: limit
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
    value_bytes
FROM refused_requests
ORDER BY refused_at DESC, kafka_partition, kafka_offset DESC
LIMIT {limit:UInt32}
