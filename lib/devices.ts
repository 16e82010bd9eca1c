import { OctconvError } from './error.js';
import { calling, type Device, native, type NativeDevice, nativeFile } from './native.js';
import type { Traits } from './targets.js';

export interface DeviceInfo {
  readonly name: Device;
  readonly about: string;
  /** Whether `auto` means this one, and why or why not. */
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

let found: readonly NativeDevice[] | undefined;
const all = (): readonly NativeDevice[] => {
  found ??= calling(() => native.devices());
  return found;
};

/** A device that there is. `auto` is the fastest: `cpu`. */
export interface Target {
  readonly name: Device;
  readonly traits: Traits;
}

/** @throws OctconvError that says why there is no such device. */
export function targetOf(name: Device | 'auto' = 'auto'): Target {
  const wanted = name === 'auto' ? 'cpu' : name;
  const device = all().find((each) => each.name === wanted);
  if (!device) throw new OctconvError(`device '${name}': wanted auto, ${all().map((each) => each.name).join(' or ')}`);
  if (!device.traits) throw new OctconvError(`device '${name}': ${device.why}`);
  return { name: device.name, traits: device.traits };
}

/** What this process can compute on. @throws OctconvError if OCTCONV_ISA asks for what the CPU does not have. */
export function devices(): Devices {
  const { isa, threads } = targetOf('cpu').traits;
  const forced = process.env.OCTCONV_ISA ? 'forced by OCTCONV_ISA' : 'the widest that this CPU has';
  return {
    devices: [
      {
        name: 'cpu',
        about: `fused kernels, ${isa} (${forced})`,
        chosen: true,
        why: 'the fastest device that was found',
      },
      { name: 'reference', about: 'the plain loops that specify the ops', chosen: false, why: 'slow, for checking' },
    ],
    isa,
    threads,
    nativeFile,
  };
}
