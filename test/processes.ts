/** Processes that tests look at, by /proc. */
import { readdirSync, readFileSync } from 'node:fs';

/** Those that another one has started, this one unless given, and that are there, zombies included. */
export function childrenThat(matches: (name: string, commandLine: string) => boolean, of = process.pid): number[] {
  const mine = (pid: string) => {
    try {
      const read = (file: string) => readFileSync(`/proc/${pid}/${file}`, 'latin1');
      const [, name = '', parent] = /^\d+ \((.*)\) \S (\d+) /.exec(read('stat')) ?? [];
      return Number(parent) === of && matches(name, read('cmdline'));
    } catch {
      return false; // it has ended
    }
  };
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && mine(name))
    .map(Number);
}
