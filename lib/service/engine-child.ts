/** The process of an isolated engine (isolated.ts). It ends when the other one lets go of it. */
import { type Engine, openEngine } from './engine.js';
import type { Tensor } from '../tensor.js';
import { codeOf } from './errors.js';
import { type Answer, type Ask, received, send } from './isolated.js';

let engine: Engine | undefined;

async function answerTo(ask: Ask): Promise<Answer> {
  if (ask === 'ping') return 'pong';
  const { id } = ask;
  try {
    if ('open' in ask) {
      engine = await openEngine(ask.open, ask.options);
      return { id, about: engine.about };
    }
    if (!engine) throw new Error('no model is open');
    return { id, y: send(await engine.run(received(ask.x) as Tensor<'f32' | 'u8'>)) };
  } catch (error) {
    return { id, code: codeOf(error), message: (error as Error).message };
  }
}

process.on('message', async (ask: Ask) => {
  const answer = await answerTo(ask);
  if (process.connected) process.send?.(answer, () => undefined);
});
process.once('disconnect', () => process.exit(0));
// The other process says when.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
