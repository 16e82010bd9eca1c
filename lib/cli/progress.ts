/** Progress on the last line of a terminal's stderr; elsewhere there is none. */
import type { MultiBar, SingleBar } from 'cli-progress';
import { onExit } from 'signal-exit';
import { errorLine } from './output.js';

export class Progress {
  #bars: MultiBar | undefined;
  #bar: SingleBar | undefined;
  #forget: (() => void) | undefined;

  /** A line of text and, with a `total`, a bar before it. */
  async start(total = 0, text = ''): Promise<void> {
    if (!process.stderr.isTTY) return;
    const { MultiBar } = await import('cli-progress');
    this.#bars = new MultiBar({
      stream: process.stderr,
      format: (_, { value, total, eta, progress }, payload) =>
        line(payload.text, value, total, total ? progress : 0, eta),
      linewrap: true, // errors are longer than a line; ours is not
      forceRedraw: true,
      gracefulExit: false, // it would keep signals from ending the process
      clearOnComplete: total === 0,
      etaBuffer: 1000,
      emptyOnZero: true,
    });
    this.#bar = this.#bars.create(total, 0, { text });
    this.#forget = onExit(() => this.stop());
  }

  update(done: number, text: string): void {
    this.#bar?.update(done, { text });
  }

  /** Another text, of work that is not counted. */
  readonly show = (text: string): void => this.update(0, text);

  /** An error's line, above the bar. */
  error(message: string): void {
    if (!this.#bars) process.stderr.write(errorLine(message));
    this.#bars?.log(errorLine(message));
    this.#bars?.update();
  }

  stop(): void {
    this.#forget?.();
    this.#bars?.stop();
    this.#bars = undefined;
    this.#bar = undefined;
  }
}

/** As wide as the terminal: what the text leaves is the bar's. */
function line(text: string, value: number, total: number, share: number, eta: number | string): string {
  const width = (process.stderr.columns || 80) - 1;
  if (total === 0) return text.slice(0, width);
  const left = value > 0 && value < total && Number.isFinite(Number(eta)) ? `, ${duration(Number(eta))} left` : '';
  const words = `${value}/${total} ${text}${left}`;
  const room = Math.min(40, width - words.length - 1);
  const filled = Math.round(room * share);
  return (room < 5 ? words : `${'█'.repeat(filled)}${'░'.repeat(room - filled)} ${words}`).slice(0, width);
}

function duration(seconds: number): string {
  const [minutes, rest] = [Math.floor(seconds / 60), Math.round(seconds % 60)];
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}
