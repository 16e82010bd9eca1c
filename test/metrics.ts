/** The text that Prometheus reads, as numbers. */
export function readMetrics(text: string): { of(name: string, labels?: object): number | undefined } {
  const values = new Map<string, number>();
  const keyOf = (name: string, labels: Iterable<readonly [string, string]>) =>
    `${name} ${[...labels].map(([label, value]) => `${label}=${value}`).sort()}`;
  for (const line of text.split('\n')) {
    if (line === '' || /^# (HELP|TYPE) \w+ /.test(line)) continue;
    const [, name, labels = '', value] = /^([a-zA-Z_]\w*)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    // What has no samples is Nan: Prometheus reads it in any case.
    const isNumber = value !== '' && (!Number.isNaN(Number(value)) || /^nan$/i.test(value ?? ''));
    if (name === undefined || !isNumber) throw new Error(`metrics: ${line}`);
    const pairs = [...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, label = '', value = '']) => [label, value] as const);
    const key = keyOf(name, pairs);
    if (values.has(key)) throw new Error(`metrics: twice ${line}`);
    values.set(key, Number(value));
  }
  return { of: (name, labels = {}) => values.get(keyOf(name, Object.entries(labels))) };
}
