/** What nats.js leaves of sockets that a cut network has: they would hang for minutes, or keep the process. */
import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { Socket } from 'node:net';
import type { NatsConnection } from '@nats-io/transport-node';

/** Connects, and ends the sockets if that fails: nats.js forgets those that no server has answered in time. */
export async function endingSockets<T>(connect: () => Promise<T>): Promise<T> {
  const inside = new AsyncLocalStorage<true>();
  const sockets: Socket[] = [];
  const take = (made: unknown) => {
    if (inside.getStore()) sockets.push((made as { socket: Socket }).socket);
  };
  subscribe('net.client.socket', take);
  try {
    return await inside.run(true, connect);
  } catch (error) {
    for (const socket of sockets) socket.destroy();
    throw error;
  } finally {
    unsubscribe('net.client.socket', take);
  }
}

/** It is not in the types: nats.js has no other way to give a connection up. */
export const transportOf = (connection: NatsConnection): { socket?: Socket; discard?(): void } | undefined =>
  (connection as { protocol?: { transport?: { socket?: Socket } } }).protocol?.transport;

/**
 * Ends the socket of a connection whose pings are not answered: nats.js itself waits until all is written, which never
 * is once the buffers of a cut network are full.
 */
export async function endStale(connection: NatsConnection): Promise<void> {
  for await (const { type } of connection.status())
    if (type === 'staleConnection') transportOf(connection)?.socket?.destroy();
}
