import { OctconvError, show } from './error.js';
import { calling, type Device, native, type NativeDevice, nativeFile } from './native.js';
import { didYouMean } from './options.js';
import type { Traits } from './targets.js';

export interface DeviceInfo {
  readonly name: Device;
  readonly about: string;
  /** Whether `auto` means this one, and why or why not, or why there is none. */
  readonly chosen: boolean;
  readonly why: string;
}

export interface Devices {
  readonly devices: readonly DeviceInfo[];
  /** Instruction set of the CPU kernels: baseline, avx2, avx512, avx512vnni or avx512bf16. */
  readonly isa: string;
  /** Threads that a run has unless told otherwise. */
  readonly threads: number;
  /** The native file that was loaded. */
  readonly nativeFile: string;
}

/** What `auto` means. */
const fastest = 'cpu';

/** What `device` may be; a kind of several has `cuda:1` and so on too. */
export const deviceNames = (): string[] => ['auto', ...native.kinds];
export const mayBeDevice = (name: string): boolean => deviceNames().includes(String(name).replace(/:.*/s, ''));

/** A device that there is. */
export interface Target {
  readonly name: Device;
  readonly traits: Traits;
}

const found = new Map<string, Target>();

/** Looks for this device alone. @throws OctconvError that says why there is no such device. */
export function targetOf(name: Device | 'auto' = 'auto'): Target {
  const wanted = name === 'auto' ? fastest : String(name).replace(/:0$/, ''); // cuda:0 is cuda
  const known = deviceNames();
  if (!mayBeDevice(wanted))
    throw new OctconvError(`device '${name}'${didYouMean(name, known)}: wanted ${known.join(', ')}`);
  const target = found.get(wanted) ?? { name: wanted, traits: calling(() => native.traits(wanted)) };
  found.set(wanted, target);
  return target;
}

/**
 * Devices by name, and `cuda:*` for all of its kind that can be used.
 * @throws OctconvError that says why there is none.
 */
export function devicesOf(names: Device | readonly Device[]): Device[] {
  if (typeof names !== 'string') {
    if (Array.isArray(names) && names.length) return names.map((name: Device) => targetOf(name).name);
    throw new OctconvError(`devices: ${show(names)}, wanted a name or a list of names`);
  }
  const kind = names.replace(/:\*$/, '');
  if (kind === names) return [targetOf(names).name];
  const all = calling(() => native.devices()).filter(({ traits }) => traits);
  const found = all.flatMap(({ name }) => (name === kind || name.startsWith(`${kind}:`) ? name : []));
  return found.length ? found : [targetOf(kind).name]; // which throws the reason
}

/** What this process can compute on. @throws OctconvError if OCTCONV_ISA asks for what the CPU does not have. */
export function devices(): Devices {
  const { isa, threads } = targetOf('cpu').traits;
  return { devices: calling(() => native.devices()).map(infoOf), isa, threads, nativeFile };
}

function infoOf({ name, traits, why }: NativeDevice): DeviceInfo {
  const chosen = name === fastest;
  if (!traits) return { name, about: 'not there', chosen, why };
  const about = `${traits.fuses === 'all' ? 'fused kernels, ' : ''}${traits.isa}`;
  return { name, about, chosen, why: chosen ? 'what auto means' : 'by its name alone' };
}
