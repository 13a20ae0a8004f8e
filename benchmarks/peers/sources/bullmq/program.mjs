// The BullMQ side of the benchmark: `node program.mjs worker|producer REDIS_PORT`.
//
// It takes one JSON command a line on stdin and answers one JSON line on stdout. A worker and a
// producer are two processes, as they would be in an application. It measures only what happens
// inside BullMQ; the harness decides what to run, when, and what it means.

import { createInterface } from "node:readline";
import { Queue, Worker } from "bullmq";

const QUEUE = "bench";
const CONCURRENCY = 200; // BullMQ's best on two cores: more, or a second process, was slower.
const BULK = 1000; // jobs an addBulk call; larger calls hold Redis longer and were no faster.
const PACE_TICK_MS = 1;

const [role, port] = process.argv.slice(2);
const connection = { host: "127.0.0.1", port: Number(port), maxRetriesPerRequest: null };

// CLOCK_MONOTONIC is one clock for all processes of a Linux machine.
const nowMs = () => Number(process.hrtime.bigint()) / 1e6;

async function worker() {
  let wanted = Infinity;
  let completed = 0;
  let reached = () => {};
  let latencies = [];
  const worker = new Worker(QUEUE, async () => {}, { connection, concurrency: CONCURRENCY });
  worker.on("error", (error) => console.error(error));
  // "completed" fires after Redis has recorded the end of the job.
  worker.on("completed", (job) => {
    if (job.data.at) latencies.push(nowMs() - job.data.at);
    completed += 1;
    if (completed === wanted) reached(nowMs());
  });
  await worker.waitUntilReady();

  let arrival = null;
  return {
    pause: async () => void (await worker.pause()),
    arm: async ({ jobs }) => {
      completed = 0;
      latencies = [];
      wanted = jobs;
      arrival = new Promise((resolve) => (reached = resolve));
    },
    release: async () => {
      const startedAtMs = nowMs();
      await worker.resume();
      return { started_at_ms: startedAtMs };
    },
    finish: async () => ({ finished_at_ms: await arrival, latencies_ms: latencies }),
  };
}

async function producer() {
  const queue = new Queue(QUEUE, { connection });
  queue.on("error", (error) => console.error(error));
  await queue.waitUntilReady();
  const options = { removeOnComplete: true, removeOnFail: true };
  return {
    add: async ({ jobs }) => {
      const startedAt = nowMs();
      for (let added = 0; added < jobs; added += BULK) {
        const size = Math.min(BULK, jobs - added);
        const bulk = Array.from({ length: size }, (_, i) => ({
          name: "noop",
          data: { num: added + i },
          opts: options,
        }));
        await queue.addBulk(bulk);
      }
      return { seconds: (nowMs() - startedAt) / 1000 };
    },
    pace: async (command) => pace(command, (data) => queue.add("noop", data, options)),
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
    await new Promise((resolve) => setTimeout(resolve, PACE_TICK_MS));
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
