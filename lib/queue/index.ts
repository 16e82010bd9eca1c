/** Work queues (`octconv/queue`): jobs on NATS JetStream, and workers that do them. */
export type { Job, JobOptions, Result, SubmitOptions, WorkSource } from './jobs.js';
export { type NatsOptions, NatsQueue } from './nats.js';
export { Worker, type WorkerEvents, type WorkerOptions } from './worker.js';
