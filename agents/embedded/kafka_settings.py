"""What the embedded broker is told: its server.properties, its log, its JVM.

Owns: every setting of the one-node Kafka with the reason for it.
Refuses to know: processes, ports in use, and where the broker's folder is.
"""

from __future__ import annotations

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 9092
# 256 MB is enough to run; half a gigabyte keeps collections rare while a benchmark fills it.
DEFAULT_HEAP_MB = 512
HEAP_MB_MIN = 192
# jobs.dead carries a whole refused record and its story; requests are bounded far below by us.
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
# The default of 128 MB is allocated at the start and would be half of a small heap.
CLEANER_BUFFER_BYTES = 32 * 1024 * 1024
# Internal topics at their default of 50 partitions only cost start-up time on one node.
INTERNAL_PARTITIONS = 8
# Controller and broker share a process, so only a stall of all of it can outlast this.
BROKER_SESSION_MS = 3000
# Threads that handle requests. One would do for speed; the second one keeps a slow request, such as
# the making of topics, from holding up all others.
IO_THREADS = 2
# Each file of the broker's log, and how many are kept.
LOG_FILE_MB_MAX = 10
LOG_FILES_KEPT = 3
# Paths are relative to the broker's folder, in which it runs: Kafka takes a comma in a path for the
# end of it, reads its settings as latin-1, and log4j fills in what looks like a pattern.
DATA_FOLDER = "data"
LOG_FOLDER = "logs"
LOG_CONFIGURATION = "log4j2.properties"


def server_properties(*, port: int, controller_port: int) -> str:
    """server.properties of one KRaft node that is broker and controller, on loopback only."""
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": DATA_FOLDER,
        # One node can hold one replica.
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "offsets.topic.num.partitions": INTERNAL_PARTITIONS,
        "transaction.state.log.num.partitions": INTERNAL_PARTITIONS,
        "share.coordinator.state.topic.num.partitions": INTERNAL_PARTITIONS,
        # The default waits three seconds for more members before the first assignment.
        "group.initial.rebalance.delay.ms": 0,
        # A misspelt topic must be an error and not a new topic with wrong settings.
        "auto.create.topics.enable": "false",
        "message.max.bytes": MESSAGE_BYTES_MAX,
        "replica.fetch.max.bytes": MESSAGE_BYTES_MAX,
        "log.cleaner.dedupe.buffer.size": CLEANER_BUFFER_BYTES,
        # After a kill -9 the controller lets the broker back in only when its former session has
        # ended; at the default of 9 s a restart took 12.6 s.
        "broker.session.timeout.ms": BROKER_SESSION_MS,
        "broker.heartbeat.interval.ms": BROKER_SESSION_MS // 6,
        # After a kill -9 every partition is checked; one thread a core does it.
        "num.recovery.threads.per.data.dir": 2,
        # Eight and three threads for what two cores can do only hand each request around.
        "num.io.threads": IO_THREADS,
        "num.network.threads": 1,
        # The broker asks itself, over the network, whether a partition was added to a transaction
        # before it takes the first records: half of a small commit's time. librdkafka adds each
        # partition first, and changes its epoch when it aborts with records under way.
        "transaction.partition.verification.enable": "false",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def log_properties() -> str:
    """log4j2's configuration: broker.log, rotated by size, with a bound on what is kept."""
    return f"""status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={LOG_FOLDER}/broker.log
appender.file.filePattern={LOG_FOLDER}/broker.%i.log
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{yyyy-MM-dd HH:mm:ss.SSS}} %p %m (%c{{1}})%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size={LOG_FILE_MB_MAX}MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max={LOG_FILES_KEPT}
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""


def jvm_options(*, heap_mb: int) -> list[str]:
    """Options for the broker's JVM: a small heap, and the collector that suits few cores."""
    return [
        f"-Xms{min(heap_mb, 256)}m",
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        # The first, cheap compiler only. The second one took 30 to 70 us of processor time from
        # each of the first 100,000 jobs and pays back less than 10 us a job after them.
        "-XX:TieredStopAtLevel=1",
        # A broker without memory must end and be started again, not linger half alive.
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={LOG_CONFIGURATION}",
    ]
