"""Produces a record whose header's name is no text, as clients in C, Go and Rust can.

`python odd_producer.py HOST:PORT TOPIC PARTITION VALUE`; a process of its own, because aiokafka
takes such a name only in its pure form, which is chosen by a variable at import.
"""

from __future__ import annotations

import asyncio
import os
import sys

os.environ["AIOKAFKA_NO_EXTENSIONS"] = "1"

from aiokafka import AIOKafkaProducer


class OddName(str):
    """A name that says it is text and is not."""

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xff\xfe"


async def main(kafka: str, topic: str, partition: int, value: bytes) -> None:
    """One record, acknowledged."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=False)
    await producer.start()
    try:
        headers = [(OddName("odd"), b"v"), ("even", b"w")]
        sent = await producer.send_and_wait(topic, value, partition=partition, headers=headers)
        print(sent.offset)
    finally:
        await producer.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()))
