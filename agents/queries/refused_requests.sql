-- title: Refused records
-- meaning: Requests, commands and other records that were refused, the newest first: what was wrong, and where the record stands. A refused request never became a job that ran.
-- unit: records
-- params: limit
SELECT
    -- include: refused_columns
FROM refused_requests
ORDER BY refused_at DESC, kafka_partition, kafka_offset DESC
LIMIT {limit:UInt32}
