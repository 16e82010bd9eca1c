// ffmpeg for the tests and the demo. Where neither the PATH nor OCTCONV_FFMPEG has one, it is the static program in
// PyPI's imageio-ffmpeg, in build/ffmpeg, or Debian's; node_modules/.bin, which npm's scripts have on their PATH, gets a
// link. Without one the tests of video are skipped.
import { readdirSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { installPackages, root, run, ToolError, which } from './system.mjs';

const link = join(root, 'node_modules', '.bin', 'ffmpeg');

export function fetchFfmpeg() {
  if (process.env.OCTCONV_FFMPEG || which('ffmpeg') || which(link)) return;
  try {
    if (!which('pip3')) return installPackages(['ffmpeg'], 'ffmpeg is wanted for video');
    console.log('setup: fetching ffmpeg from PyPI into build/ffmpeg, some 70 MB');
    const folder = join(root, 'build', 'ffmpeg');
    const install = ['install', '--quiet', '--no-deps', '--root-user-action', 'ignore', '--upgrade'];
    run('pip3', [...install, '--target', folder, 'imageio-ffmpeg<1'], { what: 'setup: pip3' });
    const binaries = join(folder, 'imageio_ffmpeg', 'binaries');
    const program = readdirSync(binaries).find((file) => file.startsWith('ffmpeg'));
    if (!program) throw new ToolError('setup: imageio-ffmpeg brings no ffmpeg for this machine');
    rmSync(link, { force: true }); // to a build folder that was removed
    symlinkSync(join(binaries, program), link);
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    console.log(`${error.message}\nsetup: no ffmpeg: the tests of video are skipped`);
  }
}
