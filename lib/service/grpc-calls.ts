/** Calls of the gRPC door: who may come in, how long a message may take, and who is told of calls. */
import type * as Grpc from '@grpc/grpc-js';
import { bearerOf, tokenCheck } from './door.js';
import { codes } from './errors.js';
import type { GrpcCall, GrpcRun, GrpcListeners } from './grpc-listeners.js';

export interface Admission {
  readonly token: string | undefined;
  /** Seconds in which the message must come. */
  readonly requestTimeout: number;
}

/** Answered without the token. */
const isOpen = (method: string): boolean => /\/Server(Live|Ready)$|^grpc\.health\.v1\./.test(method);

/** Refuses who has no token before the message is read, and who does not send it; tells of calls. */
export function doorkeeper(
  grpc: typeof Grpc,
  { token, requestTimeout }: Admission,
  { onStart, onEnd }: GrpcListeners,
): Grpc.ServerInterceptor {
  const check = token === undefined ? () => true : tokenCheck(token);
  return ({ path, requestStream }, call) => {
    const began = performance.now();
    let metadata = new grpc.Metadata();
    const about: GrpcCall = {
      method: path.slice(1),
      peer: call.getPeer(), // which is unknown when its connection has ended
      header: (name) => metadata.get(name)[0]?.toString(),
    };
    let going: GrpcRun | undefined;
    const run = (step: () => void) => (going ? going.run(step) : step());

    // The first status is the one that is sent. gRPC sends some by itself, as for a message that is too large.
    let code: number | undefined;
    const send = call.sendStatus.bind(call);
    call.sendStatus = (status) => {
      code ??= status.code ?? grpc.status.UNKNOWN;
      send(status);
    };
    const refuse = (why: 'unauthorized' | 'late', details: string) =>
      call.sendStatus({ code: codes[why].grpc as number, details });
    const tooLate = () => refuse('late', `the message took longer than ${requestTimeout} s`);
    let late: NodeJS.Timeout | undefined;

    return new grpc.ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata(given, pass) {
            metadata = given;
            if (!isOpen(about.method) && !check(bearerOf(about.header('authorization')) ?? ''))
              return refuse('unauthorized', 'wanted the token, as metadata authorization: Bearer');
            if (!requestStream) late = setTimeout(tooLate, requestTimeout * 1000);
            going = onStart?.(about);
            run(() => pass(given));
          },
          onReceiveMessage: (message, pass) => run(() => pass(message)),
          onReceiveHalfClose(pass) {
            clearTimeout(late);
            run(pass);
          },
          // After every call, however it ends; without a status its client has gone.
          onCancel() {
            clearTimeout(late);
            const { CANCELLED } = grpc.status;
            const ended = {
              code: code ?? CANCELLED,
              status: grpc.status[code ?? CANCELLED] ?? `${code}`,
              milliseconds: performance.now() - began,
            };
            going?.end(ended);
            onEnd?.(about, ended);
          },
        }),
    });
  };
}
