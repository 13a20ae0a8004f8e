// kafkajs with its defaults. `ask TYPE USER JOBS FOLDER` produces requests; `read TOPIC COUNT` prints the
// values of COUNT records, one line each, and ends.
import { Kafka, logLevel } from 'kafkajs';

const [address, role, ...words] = process.argv.slice(2);
const kafka = new Kafka({ brokers: [address], logLevel: logLevel.ERROR });

async function ask([type, user, jobs, folder]) {
  const producer = kafka.producer();
  await producer.connect();
  const messages = Array.from({ length: Number(jobs) }, (_, n) => ({
    key: user,
    value: JSON.stringify({ type, user_id: user, job_id: `${user}-${n}`, payload: { folder, n } }),
  }));
  await producer.send({ topic: 'jobs.requested', messages });
  await producer.disconnect();
}

async function read([topic, count]) {
  const consumer = kafka.consumer({ groupId: `stranger-${process.pid}-${Date.now()}` });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  let left = Number(count);
  await new Promise((resolve, reject) => {
    // An error that the client does not try again, such as a compression that it does not know.
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    consumer.run({
      eachMessage: async ({ message }) => {
        if (left > 0) process.stdout.write(`${message.value}\n`);
        left -= 1;
        if (left === 0) resolve();
      },
    });
  });
  await consumer.disconnect();
}

await { ask, read }[role](words);
process.exit(0);
