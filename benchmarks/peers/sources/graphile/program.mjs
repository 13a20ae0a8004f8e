// The Graphile Worker side of the benchmark: `node program.mjs worker|producer CONNECTION`.
//
// It takes one JSON command a line on stdin and answers one JSON line on stdout. A worker and a
// producer are two processes, as they would be in an application. It measures only what happens
// inside Graphile Worker; the harness decides what to run, when, and what it means.

import { createInterface } from "node:readline";
import { setTimeout as wait } from "node:timers/promises";
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";

// The settings with which Graphile Worker publishes its own numbers.
const CONCURRENT_JOBS = 24;
const POOL_SIZE = 25;
const LOCAL_QUEUE_SIZE = 500;
const BATCH_DELAY_MS = 0;

const BULK = 10_000; // jobs an add_jobs call.
const PACE_TICK_MS = 1;
const EMPTY_POLL_MS = 1;

const [role, connectionString] = process.argv.slice(2);
const quiet = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});

// CLOCK_MONOTONIC is one clock for all processes of a Linux machine.
const nowMs = () => Number(process.hrtime.bigint()) / 1e6;

async function worker() {
  let wanted = Infinity;
  let succeeded = 0;
  let reached = () => {};
  let latencies = [];
  const pool = new pg.Pool({ connectionString, max: POOL_SIZE });
  const runner = await run({
    preset: {
      worker: {
        concurrentJobs: CONCURRENT_JOBS,
        maxPoolSize: POOL_SIZE,
        localQueue: { size: LOCAL_QUEUE_SIZE },
        completeJobBatchDelay: BATCH_DELAY_MS,
        failJobBatchDelay: BATCH_DELAY_MS,
        gracefulShutdownAbortTimeout: 5000,
      },
    },
    pgPool: pool,
    logger: quiet,
    noHandleSignals: true,
    taskList: {
      noop: async (payload) => {
        if (payload.at) latencies.push(nowMs() - payload.at);
      },
    },
  });
  runner.events.on("job:success", () => {
    succeeded += 1;
    if (succeeded === wanted) reached();
  });
  const count = (jobs) => {
    succeeded = 0;
    latencies = [];
    wanted = jobs;
    return new Promise((resolve) => (reached = resolve));
  };
  const jobsLeft = async () => {
    const { rows } = await pool.query(
      "select exists (select from graphile_worker._private_jobs) as some",
    );
    return rows[0].some;
  };
  let arrival = null;
  return {
    arm: async ({ jobs }) => {
      arrival = count(jobs);
      return {};
    },
    // Completion is batched: a job has ended when its row is gone, not when its function returned.
    finish: async () => {
      await arrival;
      while (await jobsLeft()) await wait(EMPTY_POLL_MS);
      return { finished_at_ms: nowMs(), latencies_ms: latencies };
    },
  };
}

async function producer() {
  const utils = await makeWorkerUtils({ connectionString, logger: quiet });
  await utils.migrate();
  const client = new pg.Client({ connectionString });
  await client.connect();
  const addAll = async (jobs) => {
    const sql = `select 1 from graphile_worker.add_jobs(
      array(select json_populate_recordset(null::graphile_worker.job_spec, $1::json)))`;
    for (let added = 0; added < jobs; added += BULK) {
      const size = Math.min(BULK, jobs - added);
      const specs = Array.from({ length: size }, (_, i) => ({
        identifier: "noop",
        payload: { num: added + i },
      }));
      await client.query(sql, [JSON.stringify(specs)]);
    }
  };
  return {
    // Jobs of an open transaction are invisible: `release` lets a warm worker at all of them at
    // once. ANALYZE gives the planner true statistics, as autovacuum would a minute later.
    hold: async ({ jobs }) => {
      await client.query("begin");
      await addAll(jobs);
      await client.query("analyze graphile_worker._private_jobs");
    },
    release: async () => {
      const startedAtMs = nowMs();
      await client.query("commit");
      return { started_at_ms: startedAtMs };
    },
    add: async ({ jobs }) => {
      const startedAt = nowMs();
      await addAll(jobs);
      return { seconds: (nowMs() - startedAt) / 1000 };
    },
    pace: async (command) => pace(command, (data) => utils.addJob("noop", data)),
  };
}

// Sends at a steady rate without waiting for answers. A job's clock starts when it was due, so
// that a late producer shows up as latency and is not hidden.
async function pace({ rate, warmup_seconds, seconds }, send) {
  const beginMs = nowMs();
  const warmup = Math.round(rate * warmup_seconds);
  const jobs = warmup + Math.round(rate * seconds);
  const pending = [];
  let sent = 0;
  while (sent < jobs) {
    while (sent < jobs) {
      const dueMs = beginMs + (sent * 1000) / rate;
      if (dueMs > nowMs()) break;
      pending.push(send({ num: sent, at: sent < warmup ? 0 : dueMs }));
      sent += 1;
    }
    await wait(PACE_TICK_MS);
  }
  await Promise.all(pending);
  return { sent, seconds: (nowMs() - beginMs) / 1000 };
}

const commands = await (role === "worker" ? worker() : producer());
const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");
answer({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...rest } = JSON.parse(line);
  answer((await commands[name](rest)) ?? {});
}
process.exit(0); // stdin was closed: the harness has gone or is done.
