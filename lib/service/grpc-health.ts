/**
 * gRPC's own health protocol (grpc.health.v1), which load balancers and Kubernetes ask: of the server, which is called
 * "" or as its service, and of each model by its name.
 */
import type * as Grpc from '@grpc/grpc-js';
import { show } from '../error.js';
import { codeOf, ServiceError } from './errors.js';
import type { Service } from './service.js';

export type Health = 'SERVING' | 'NOT_SERVING' | 'SERVICE_UNKNOWN';

export interface HealthRequest {
  readonly service: string;
}
type Watching = Grpc.ServerWritableStream<unknown, { readonly status: Health }>;

/** What the server is called, beside "". */
const ownName = 'inference.GRPCInferenceService';

/** A server that is about to end serves nothing any more, so that others are asked. */
export function healthOf(service: Service, name: string): Health {
  if (name === '' || name === ownName) return service.ready ? 'SERVING' : 'NOT_SERVING';
  try {
    service.readyVersion(name);
    return service.leaving ? 'NOT_SERVING' : 'SERVING';
  } catch (error) {
    const code = codeOf(error);
    if (code === 'notFound') return 'SERVICE_UNKNOWN';
    if (code === 'unavailable') return 'NOT_SERVING';
    throw error;
  }
}

/** @throws ServiceError for a name that nothing has. */
export function checkHealth(service: Service, { service: name }: HealthRequest): { status: Health } {
  const status = healthOf(service, name);
  if (status === 'SERVICE_UNKNOWN') throw new ServiceError('notFound', `no model ${show(name)}`);
  return { status };
}

/** Those who watch the health of something. One listener of the service tells them all. */
export class HealthWatchers {
  readonly #service: Service;
  readonly #looks = new Map<Watching, () => void>();
  readonly #look = () => {
    for (const look of this.#looks.values()) look();
  };

  constructor(service: Service) {
    this.#service = service;
    service.on('health', this.#look);
  }

  /** Writes the status of a name now, and each other one that it becomes, until the client leaves. */
  add(call: Watching, { service: name }: HealthRequest): void {
    let told: Health | undefined;
    const look = () => {
      const status = healthOf(this.#service, name);
      if (status !== told) call.write({ status });
      told = status;
    };
    this.#looks.set(call, look);
    call.once('cancelled', () => void this.#looks.delete(call));
    look();
  }

  /** Ends all of them. */
  close(status: Grpc.StatusObject): void {
    this.#service.off('health', this.#look);
    for (const call of this.#looks.keys()) call.emit('error', status);
    this.#looks.clear();
  }
}
