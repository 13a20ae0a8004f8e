"""The ledger: a Faust app whose partitions decide, each group in one Kafka transaction."""
