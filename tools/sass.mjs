// Reads the machine code of a kernel as nvdisasm prints it: instructions and loops.

/**
 * The kernels of a disassembly by name: `instructions` of { op, guarded, targets }, where targets are indices of
 * instructions that a branch goes to.
 */
export function kernelsOf(disassembly) {
  const kernels = new Map();
  for (const section of disassembly.split(/^\s*\.section\s+\.text\./m).slice(1)) {
    const instructions = [];
    const labels = new Map();
    for (const line of section.split('\n')) {
      const [, label] = /^(\.L_\w+):/.exec(line) ?? [];
      if (label) labels.set(label, instructions.length);
      const [, guard, op, operands] = /^\s+\/\*[0-9a-f]+\*\/\s+(@!?U?P\w+\s+)?([A-Z][\w.]+)(.*)/.exec(line) ?? [];
      if (op) instructions.push({ op, guarded: guard !== undefined, operands });
    }
    for (const each of instructions) {
      const names = /^(BRA|BRX)/.test(each.op) ? (each.operands.match(/\.L_\w+/g) ?? []) : [];
      each.targets = names.map((name) => labels.get(name));
      // What a branch depends on may also be its first operand.
      each.guarded ||= /^BRA/.test(each.op) && /^[^`]*\bU?P\d/.test(each.operands);
    }
    kernels.set(/^\w+/.exec(section)[0], instructions);
  }
  return kernels;
}

/** Indices of what may be executed after each instruction. A call comes back. */
function successorsOf(instructions) {
  return instructions.map(({ op, guarded, targets }, i) => {
    const ends = !guarded && /^(BRA|BRX|EXIT|RET|KILL)/.test(op);
    return [...targets, ...(ends || i + 1 === instructions.length ? [] : [i + 1])];
  });
}

/**
 * The innermost loops that contain instructions `wanted`: sets of indices, with the first one. A loop is what leads to
 * a branch back to its first instruction without passing that one.
 */
export function loopsWith(instructions, wanted) {
  const next = successorsOf(instructions);
  const before = instructions.map(() => []);
  for (const [i, list] of next.entries()) for (const j of list) before[j].push(i);
  const loops = new Map(); // by first instruction
  for (const [i, list] of next.entries())
    for (const first of list.filter((j) => j <= i)) {
      const inside = loops.get(first) ?? new Set([first]);
      loops.set(first, inside);
      for (const todo = [i]; todo.length; ) {
        const j = todo.pop();
        if (inside.has(j)) continue;
        inside.add(j);
        todo.push(...before[j]);
      }
    }
  const containing = [...loops].filter(([, inside]) => [...inside].some((i) => wanted.test(instructions[i].op)));
  return containing
    .filter(
      ([first]) =>
        !containing.some(
          ([other, { size }]) => other !== first && loops.get(first).has(other) && size < loops.get(first).size,
        ),
    )
    .map(([first, inside]) => ({ first, inside }));
}
