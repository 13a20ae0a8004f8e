"""Tests over the Kafka and the ClickHouse server that docker-compose.yml names, in containers."""
