// Writes a model folder or a file whose parts all tell its version: node write.mjs folder|file|hang PATH VERSION
// [TIMES]
const [, , what, path, version, times = '1'] = process.argv;
const lib = new URL('../../dist/', import.meta.url);
const { writeModelFolder } = await import(new URL('weights/folder.js', lib));
const { memoryWeights } = await import(new URL('weights/memory.js', lib));
const { writeWhole } = await import(new URL('files/write.js', lib));

const options = { alpha: 0.25, width: 8, classes: 1, stem: 'cifar' };
const input = {
  height: Number(version),
  width: 24,
  resize: 4000,
  interpolation: 'bicubic',
  scale: 1,
  mean: [1, 2, 3],
  std: [4, 5, 6],
};
const tensors = new Map([['w', { dtype: 'f32', shape: [2], data: new Float32Array(2).fill(version) }]]);
const weights = memoryWeights(tensors);
const hanging = { tensors, read: () => new Promise(() => setInterval(() => undefined, 1000)) };
async function* endless() {
  yield 'begun';
  console.log('ready');
  await new Promise(() => setInterval(() => undefined, 1000));
}
for (let i = 0; i < Number(times); i++) {
  if (what === 'file') await writeWhole(path, [`${version},`, version]);
  else if (what === 'hang')
    await Promise.all([
      writeWhole(`${path}.bin`, endless()),
      writeModelFolder(path, { network: 'oct-resnet-26', options, input }, [version], hanging),
    ]);
  else await writeModelFolder(path, { network: 'oct-resnet-26', options, input }, [version], weights, { force: true });
}
