import { OctconvError } from './error.js';
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

let found: readonly NativeDevice[] | undefined;
const all = (): readonly NativeDevice[] => {
  found ??= calling(() => native.devices());
  return found;
};

/** What `device` may be. */
export const deviceNames = (): string[] => ['auto', ...all().map(({ name }) => name)];

/** A device that there is. */
export interface Target {
  readonly name: Device;
  readonly traits: Traits;
}

/** @throws OctconvError that says why there is no such device. */
export function targetOf(name: Device | 'auto' = 'auto'): Target {
  const wanted = name === 'auto' ? fastest : name;
  const device = all().find((each) => each.name === wanted);
  if (!device) {
    const known = deviceNames();
    throw new OctconvError(`device '${name}'${didYouMean(name, known)}: wanted ${known.join(', ')}`);
  }
  if (!device.traits) throw new OctconvError(`device '${name}': ${device.why}`);
  return { name: device.name, traits: device.traits };
}

/** What this process can compute on. @throws OctconvError if OCTCONV_ISA asks for what the CPU does not have. */
export function devices(): Devices {
  const { isa, threads } = targetOf('cpu').traits;
  return { devices: all().map(infoOf), isa, threads, nativeFile };
}

function infoOf({ name, traits, why }: NativeDevice): DeviceInfo {
  const chosen = name === fastest;
  if (!traits) return { name, about: 'not there', chosen, why };
  const about = `${traits.fuses ? 'fused kernels, ' : ''}${traits.isa}`;
  return { name, about, chosen, why: chosen ? 'the fastest device that was found' : 'by its name alone' };
}
