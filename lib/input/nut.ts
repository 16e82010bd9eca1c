/**
 * Reads NUT, FFmpeg's own container, as far as FFmpeg writes it for one stream of raw frames: beside the bytes it tells
 * size and time of each frame, on one pipe. (https://ffmpeg.org/~michael/nut.txt)
 */
import { OctconvError } from '../error.js';
import type { Frame } from './image.js';

const magic = 'nut/multimedia container\0';

/** The first two of the eight bytes with which a packet that is no frame begins. */
const packets = { main: 'NM', stream: 'NS', syncpoint: 'NK' };

const flag = {
  codedPts: 1 << 3,
  streamId: 1 << 4,
  sizeMsb: 1 << 5,
  checksum: 1 << 6,
  reserved: 1 << 7,
  sideData: 1 << 8,
  headerIdx: 1 << 10,
  matchTime: 1 << 11,
  coded: 1 << 12,
  invalid: 1 << 13,
};

/** What the first byte of a frame stands for. */
interface FrameCode {
  readonly flags: number;
  readonly ptsDelta: number;
  readonly sizeMul: number;
  readonly size: number;
  readonly reserved: number;
  readonly header: number;
}

interface Stream {
  readonly width: number;
  readonly height: number;
  /** Seconds of one unit of time. */
  readonly unit: number;
  readonly ptsBits: number;
}

const wrong = (what: string) => new OctconvError(`ffmpeg: its NUT output has ${what}`);

/**
 * Frames of 3 bytes a pixel. `check` sees their size before there is memory for one.
 * @throws OctconvError for what FFmpeg does not write.
 */
export async function* readNut(
  chunks: AsyncIterable<Uint8Array>,
  check: (height: number, width: number) => void,
): AsyncGenerator<Frame, void, void> {
  const input = new Bytes(chunks);
  let main: ReturnType<typeof readMain> | undefined;
  let stream: Stream | undefined;
  let pts = 0;
  if (!(await input.more())) return;
  if (Buffer.from(await input.take(magic.length)).toString('latin1') !== magic) throw wrong('no magic');
  while (await input.more()) {
    const first = (await input.take(1))[0] as number;
    if (first === 0x4e) {
      const kind = `N${String.fromCharCode((await input.take(7))[0] as number)}`;
      const size = await input.number();
      if (size > 4096) await input.take(4); // checksum
      const packet = new Packet(await input.take(size));
      if (kind === packets.main) main = readMain(packet);
      else if (kind === packets.stream && main) {
        stream = readStream(packet, main.units);
        check(stream.height, stream.width);
      } else if (kind === packets.syncpoint && main && stream) {
        const at = packet.number();
        const units = main.units;
        pts = Math.floor((Math.floor(at / units.length) * (units[at % units.length] as number)) / stream.unit + 1e-6);
      }
      continue;
    }
    const code = main?.codes[first];
    if (!main || !stream || !code) throw wrong('a frame where none can be');
    let { flags, size, header, reserved } = code;
    if (flags & flag.coded) flags ^= await input.number();
    if (flags & (flag.invalid | flag.sideData)) throw wrong(`a frame of flags ${flags}`);
    if (flags & flag.streamId && (await input.number()) !== 0) throw wrong('a second stream');
    if (flags & flag.codedPts) {
      const coded = await input.number();
      const range = 2 ** stream.ptsBits;
      const least = pts - Math.floor((range - 1) / 2);
      // Low bits of a time near the last one, or all of it.
      pts = coded >= range ? coded - range : least + ((((coded - least) % range) + range) % range);
    } else pts += code.ptsDelta;
    if (flags & flag.sizeMsb) size += code.sizeMul * (await input.number());
    if (flags & flag.matchTime) await input.number();
    if (flags & flag.headerIdx) header = await input.number();
    if (flags & flag.reserved) reserved = await input.number();
    while (reserved-- > 0) await input.number();
    if (flags & flag.checksum) await input.take(4);
    const { height, width, unit } = stream;
    if (size !== height * width * 3) throw wrong(`a frame of ${size} bytes, wanted ${height} x ${width} x 3`);
    // Small frames leave out how they begin, if others do the same.
    const head = (size <= 4096 && main.headers[header]) || new Uint8Array();
    yield { data: await input.take(size, head), height, width, seconds: pts * unit };
  }
}

function readMain(packet: Packet) {
  const version = packet.number();
  if (version !== 3) throw wrong(`version ${version}`);
  if (packet.number() !== 1) throw wrong('several streams');
  packet.number(); // the distance of syncpoints
  const units = Array.from({ length: packet.number() }, () => packet.number() / packet.number());
  const codes: (FrameCode | undefined)[] = [];
  let [ptsDelta, sizeMul, header] = [0, 1, 0];
  while (codes.length < 256) {
    const flags = packet.number();
    const fields = packet.number();
    if (fields > 0) ptsDelta = packet.signed();
    if (fields > 1) sizeMul = packet.number();
    if (fields > 2) packet.number(); // the stream
    let size = fields > 3 ? packet.number() : 0;
    const reserved = fields > 4 ? packet.number() : 0;
    const count = fields > 5 ? packet.number() : sizeMul - size;
    if (fields > 6) packet.signed();
    if (fields > 7) header = packet.number();
    for (let i = 8; i < fields; i++) packet.number();
    if (count < 1) throw wrong('an empty row of frame codes');
    for (let i = 0; i < count && codes.length < 256; i++) {
      if (codes.length === 0x4e) codes.push(undefined); // N begins other packets
      codes.push({ flags, ptsDelta, sizeMul, size: size++, reserved, header });
    }
  }
  const headers = [new Uint8Array()];
  for (let left = packet.number(); left > 0; left--) headers.push(packet.bytes(packet.number()));
  return { units, codes, headers };
}

function readStream(packet: Packet, units: readonly number[]): Stream {
  packet.number(); // its number
  packet.number(); // its class
  packet.bytes(packet.number()); // fourcc
  const unit = units[packet.number()];
  const ptsBits = packet.number();
  for (let i = 0; i < 3; i++) packet.number(); // distance of times, delay of decoding, flags
  packet.bytes(packet.number());
  const [width, height] = [packet.number(), packet.number()];
  if (unit === undefined) throw wrong('a stream without a time base');
  return { width, height, unit, ptsBits };
}

/** Reads NUT's `v`: 7 bits per byte, most significant first; the top bit says that more follow. */
class Packet {
  #at = 0;
  constructor(readonly data: Uint8Array<ArrayBuffer>) {}

  bytes(count: number): Uint8Array<ArrayBuffer> {
    this.#at += count;
    if (this.#at > this.data.length) throw wrong('a packet that ends within a field');
    return this.data.subarray(this.#at - count, this.#at);
  }

  number(): number {
    for (let value = 0; ; ) {
      const byte = this.bytes(1)[0] as number;
      value = value * 128 + (byte & 127);
      if (byte < 128) return value;
    }
  }

  signed(): number {
    const coded = this.number() + 1;
    return coded % 2 ? -(coded - 1) / 2 : coded / 2;
  }
}

/** The same of a stream, whose chunks end anywhere. */
class Bytes {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #chunk: Uint8Array = new Uint8Array();

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** Whether there is one more byte. */
  async more(): Promise<boolean> {
    while (this.#chunk.length === 0) {
      const { done, value } = await this.#chunks.next();
      if (done) return false;
      this.#chunk = value;
    }
    return true;
  }

  /** So many bytes, of which the first are given already, in memory of their own. */
  async take(count: number, head = new Uint8Array()): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(count);
    bytes.set(head);
    for (let done = head.length; done < count; ) {
      if (!(await this.more())) throw wrong('an end within a frame');
      const part = this.#chunk.subarray(0, count - done);
      bytes.set(part, done);
      done += part.length;
      this.#chunk = this.#chunk.subarray(part.length);
    }
    return bytes;
  }

  async number(): Promise<number> {
    for (let value = 0; ; ) {
      const byte = (await this.take(1))[0] as number;
      value = value * 128 + (byte & 127);
      if (byte < 128) return value;
    }
  }
}
