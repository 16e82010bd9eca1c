/** A device is a folder and a table: one more (native/test/device.cc) runs its ops without a line elsewhere. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { nativeFile } from '../lib/native.js';
import { skip } from './skip.js';

// Linked beside the addon, from the same objects.
const addon = join(nativeFile, '../../test/octconv.node');
const env = { ...process.env, OCTCONV_NATIVE: addon };
const path = (file: string) => fileURLToPath(new URL(file, import.meta.url));

describe('device: one that records its calls', function () {
  this.timeout(60_000);
  let told: {
    recorded: { calls: string; algorithms: string[]; device: string; threads: number };
    softmax: string;
    unknown: string;
    devices: { name: string; about: string; chosen: boolean; why: string }[];
  };
  before(function () {
    if (!existsSync(addon)) skip(this, 'build');
    told = JSON.parse(
      execFileSync(process.execPath, ['--import=tsx', path('device-child.ts')], { env, encoding: 'utf8' }),
    );
  });

  it('runs a network of its two ops, and sees each call', () => {
    expect(told.recorded.calls).to.equal('format octConv, pack octConv, compile octConv relu, prepare, start');
    expect(told.recorded.algorithms).to.deep.equal(['records octConv', 'records relu']);
    expect([told.recorded.device, told.recorded.threads]).to.deep.equal(['recorder', 1]);
  });

  it('an op that it has no kernel for says so by name', () => {
    expect(told.softmax).to.equal('softmax: no kernel on recorder');
  });

  it('is listed by what the addon tells', () => {
    expect(told.devices.map(({ name }) => name)).to.deep.equal(['cpu', 'cuda', 'cudnn', 'recorder', 'reference']);
    expect(told.devices[3]).to.deep.equal({
      name: 'recorder',
      about: 'records its calls',
      chosen: false,
      why: 'by its name alone',
    });
    expect(told.unknown).to.equal("device 'camera': wanted auto, cpu, cuda, cudnn, recorder, reference");
  });

  it('the command line lists it and takes it', () => {
    const octconv = (args: string) =>
      spawnSync(process.execPath, ['--import=tsx', path('../lib/cli.ts'), ...args.split(' ')], {
        env,
        encoding: 'utf8',
      });
    expect(octconv('devices').stdout).to.match(/^ {2}recorder +records its calls; by its name alone$/m);
    const picture = path('images/cat.jpg');
    expect(octconv(`classify ${picture} --device recorder`).stderr).to.equal(
      'octconv: batchNorm: no kernel on recorder\n',
    );
    expect(octconv(`classify ${picture} --device camera`).stderr).to.include(
      'wanted auto, cpu, cuda, cudnn, recorder, reference',
    );
  });
});
