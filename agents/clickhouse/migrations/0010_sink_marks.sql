-- Marks of this store, one for each start of a sink and each ten minutes of its work. The note beside
-- each offset that a sink commits names the newest one. A store in which that mark is not, is another
-- one: new, or put back from a copy that is older than the mark.
CREATE TABLE IF NOT EXISTS sink_marks
(
    mark String,
    made_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY mark
SETTINGS non_replicated_deduplication_window = 20000;
