/** Loaded into a server it makes it leak: it keeps 64 KiB for each request over HTTP. The control of soak.ts. */
import { Server } from 'node:http';

const kept: Buffer[] = [];
const emit = Server.prototype.emit;
Server.prototype.emit = function (this: Server, name: string | symbol, ...args: unknown[]): boolean {
  if (name === 'request') kept.push(Buffer.alloc(2 ** 16, 1));
  return emit.apply(this, [name, ...args] as never);
};
