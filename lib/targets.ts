/**
 * Which passes make a graph into the steps that a device runs. All that they know of a device are its traits, plain
 * data that its native side tells; none reads a global, and none calls the addon.
 */
import { bytesPerElement, type DType } from './dtype.js';
import { chooseAlgorithms } from './graph/algorithm.js';
import { fusing, joiningEpilogues, type Pass, passThrough, short } from './graph/fuse.js';
import type { ComputeType, Graph } from './graph/graph.js';
import { lower, sourcesOf, type Step, type Steps } from './graph/lower.js';
import { padChannels } from './graph/pads.js';
import { sliceConcats } from './graph/slices.js';
import { subBatch } from './graph/subbatch.js';
import { assignTypes, type Quantized } from './graph/types.js';
import { elementCount } from './tensor.js';
import { atOnce, inTurns } from './turns.js';

/** See `Traits` in native/core/device.h. */
export interface Traits {
  /** Instruction set or architecture. */
  readonly isa: string;
  /** Threads that a run has unless told otherwise. */
  readonly threads: number;
  /** Values in the arena begin at multiples of so many bytes. */
  readonly align: number;
  /** Zeros behind the channels of a pixel fill them up to multiples of so many bytes. */
  readonly channelAlign: number;
  /** The same where these zeros are at most a 32nd of the channels. */
  readonly pitchAlign: number;
  /**
   * What of the steps around it becomes part of a convolution. `nothing`: the graph is taken as recorded. `epilogues`:
   * of a convolution with one input its bias, batch normalisation, residual and ReLU; P, U and sums stay steps of their
   * own, as other libraries have them. `all`: all that the contract of octConv has.
   */
  readonly fuses: 'nothing' | 'epilogues' | 'all';
  /** How often P is applied to what a convolution stores, at most, where all is fused. */
  readonly mostPooled: number;
  /** Whether it goes over a batch some images at a time. */
  readonly subBatches: boolean;
  /** Whether a convolution may store y where its residual lies. */
  readonly inPlace: boolean;
  /** The forms of Winograd's algorithm that it knows, and the most input channels, or products, of i8 that each sums up. */
  readonly winograd: { readonly [form in 2 | 4 | 'overTime']?: number };
  /** What convolutions may multiply. */
  readonly computes: readonly ComputeType[];
  /** What of it is faster than f32. */
  readonly dotProducts: readonly ComputeType[];
  /** Default of `ModelOptions.idleBytes`. */
  readonly idleBytes: number;
  /** Whether its memory is its own, where tensors may lie. */
  readonly ownMemory: boolean;
  /** Of the ops that it has a kernel for. */
  readonly ops: { readonly [op: string]: OpTraits };
}

/** See `OpTraits` in native/core/device.h. */
export interface OpTraits {
  /** Data types of inputs. */
  readonly dtypes: readonly DType[];
  /** Whether outputs have the type of the inputs. */
  readonly keepsType: boolean;
  /** Whether each input and output may be of any of these types. */
  readonly mixesTypes: boolean;
  /** Whether it takes values whose pixels lie further apart than their channels: padded ones, slices of wider ones. */
  readonly pitched: boolean;
}

/** What steps are made for. */
export interface Aim {
  readonly traits: Traits;
  readonly threads?: number;
  /** What convolutions multiply; default f32. */
  readonly compute?: ComputeType;
  readonly quantized?: Quantized;
}

/** The steps that a device runs. */
export const stepsFor = (graph: Graph, aim: Aim): Steps => atOnce(passThrough(passesFor(graph, aim), lower(graph)));

/** The same in turns of the event loop. */
export const stepsInTurns = (graph: Graph, aim: Aim): Promise<Steps> =>
  inTurns(passThrough(passesFor(graph, aim), lower(graph)));

function passesFor(graph: Graph, { threads = 1, compute = 'f32', quantized = new Map(), traits }: Aim): Pass[] {
  const types = short((steps) => assignTypes(steps, { compute, quantized, traits }));
  const elements = (name: string) => elementCount(graph.params.get(name) ?? []);
  const weightsOf = (step: Step) =>
    step.branches ? step.branches.flatMap(sourcesOf).map(({ weight }) => weight) : Object.values(step.params);
  const weightBytes = (step: Step) =>
    weightsOf(step).reduce((sum, name) => sum + elements(name), 0) * bytesPerElement[compute];
  const fusions = {
    nothing: () => [types],
    epilogues: () => joiningEpilogues(types),
    all: () => [...fusing(types, traits.mostPooled), short((steps) => sliceConcats(steps, traits))],
  };
  const passes: Pass[] = fusions[traits.fuses]();
  passes.push(short((steps) => padChannels(steps, traits)));
  if (traits.subBatches) passes.push(short((steps) => subBatch(steps, threads, weightBytes)));
  passes.push((steps) => chooseAlgorithms(steps, traits));
  return passes;
}
