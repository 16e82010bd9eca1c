// Mocha's usual report, and its JSON report as well when OCTCONV_REPORT names a file (.ci/run counts from it).
import Mocha from 'mocha';

const { JSON: Json, Spec } = Mocha.reporters;

export default class SpecAndJson extends Spec {
  constructor(runner, options) {
    super(runner, options);
    const output = process.env.OCTCONV_REPORT;
    if (output) new Json(runner, { ...options, reporterOption: { output } });
  }
}
