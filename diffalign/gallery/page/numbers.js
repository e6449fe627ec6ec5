/* Statistics. The unit is the prompt: intervals resample prompts, or cluster by them. */
/** A 32-bit hash of a text: FNV-1a with murmur's last mixing. */
function hash(text) {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

const pairs = models.flatMap((_, i) => models.slice(i + 1).map((_, k) => [i, i + 1 + k]));

/** Of each prompt that was judged: wins[i * M + j] of model i over j, and ties, by a judge or by the votes. */
function tally(source) {
  const M = models.length, j = judgeNames.indexOf(source);
  return rows.map((row) => {
    const wins = new Float64Array(M * M), ties = new Float64Array(M * M);
    const count = (a, b, gain) => {
      if (gain) wins[gain > 0 ? a * M + b : b * M + a] += 1;
      else { ties[a * M + b] += 1; ties[b * M + a] += 1; }
    };
    if (source === "votes") {
      for (const vote of votesOf.get(row.id) ?? []) if (vote.aspect === session.aspect) {
        count(models.indexOf(vote.a.model), models.indexOf(vote.b.model), { a: 1, b: -1 }[vote.choice] ?? 0);
      }
    } else {
      for (const [a, b] of pairs) for (const g of gains(row, j, a, b)) count(a, b, Math.abs(g) > margin(j) ? g : 0);
    }
    return { wins, ties, category: row.category };
  });
}

function total(tallies, weights) {
  const wins = new Float64Array(models.length ** 2), ties = new Float64Array(models.length ** 2);
  tallies.forEach((one, p) => {
    const w = weights ? weights[p] : 1;
    if (w) for (let k = 0; k < wins.length; k++) { wins[k] += w * one.wins[k]; ties[k] += w * one.ties[k]; }
  });
  return { wins, ties };
}

/** Win rate of i over j, a tie counting half; NaN where they never met. */
function rate({ wins, ties }, i, j) {
  const [won, tied, lost] = [wins[i * models.length + j], ties[i * models.length + j], wins[j * models.length + i]];
  return (won + tied / 2) / (won + tied + lost);
}

/** Values of statistic(total) with their 95 % intervals, from 2000 resamples of the prompts that were judged. */
function bootstrap(all, statistic) {
  const tallies = all.filter((one) => [...one.wins, ...one.ties].some(Boolean));
  const values = statistic(total(tallies)), drawn = values.map(() => []);
  let x = 0x92d68ca2; // xorshift, so that the intervals are the same each time
  for (let b = 0; b < 2000 && tallies.length > 1; b++) {
    const weights = new Uint16Array(tallies.length);
    for (let p = 0; p < tallies.length; p++) { x ^= x << 13; x ^= x >>> 17; x ^= x << 5; weights[(x >>> 0) % tallies.length] += 1; }
    statistic(total(tallies, weights), values).forEach((v, k) => Number.isFinite(v) && drawn[k].push(v));
  }
  return values.map((value, k) => {
    const sorted = Float64Array.from(drawn[k]).sort(), n = sorted.length;
    const at = (q) => (n ? sorted[Math.min(n - 1, Math.floor(q * n))] : NaN);
    return { value, low: at(0.025), high: at(0.975) };
  });
}

/** Half the width of a win rate's 95 % interval, clustered by prompt; shares are [wins, comparisons] of prompts.
 *  One prompt won and one lost are added, so that it is never 0 before there are many. */
function halfWidth(shares) {
  const all = [...shares, [1, 1], [0, 1]];
  const n = all.reduce((sum, share) => sum + share[1], 0), m = all.reduce((sum, share) => sum + share[0], 0) / n;
  const spread = all.reduce((sum, [won, count]) => sum + (won - m * count) ** 2, 0);
  return Math.min(0.5, 1.96 * Math.sqrt((all.length / (all.length - 1)) * spread) / n);
}

/** Bradley-Terry log-strengths over the base's, and log nu, with Davidson's (1970) ties; a ridge of 0.1 keeps them finite.
 *  Parameters are the M strengths and log nu; a tie has the mean strength of both plus log nu. The likelihood is
 *  concave and an outcome touches three parameters, so steps of a third of Newton's for each alone converge. */
function strengths({ wins, ties }, from = []) {
  const M = models.length, theta = new Float64Array(M + 1), slope = new Float64Array(M + 1), bend = new Float64Array(M + 1);
  theta.set(from); // where a resample begins
  const features = [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 1]]; // of i wins, j wins, tie in theta[i], theta[j], log nu
  for (let step = 0, moved = 1; step < 300 && moved > 1e-5; step++) {
    const middle = theta.slice(0, M).reduce((sum, t) => sum + t, 0) / M; // 0 at the optimum, by the ridge
    for (let k = 0; k <= M; k++) { theta[k] -= k < M ? middle : 0; slope[k] = -0.1 * theta[k]; bend[k] = 0.1; }
    for (const [i, j] of pairs) {
      const seen = [wins[i * M + j], wins[j * M + i], ties[i * M + j]], n = seen[0] + seen[1] + seen[2];
      const e = [theta[i], theta[j], (theta[i] + theta[j]) / 2 + theta[M]].map(Math.exp), z = e[0] + e[1] + e[2];
      [i, j, M].forEach((k, c) => {
        const f = features.map((feature) => feature[c]), m = (e[0] * f[0] + e[1] * f[1] + e[2] * f[2]) / z;
        for (let o = 0; o < 3; o++) { slope[k] += (seen[o] - (n * e[o]) / z) * f[o]; bend[k] += ((n * e[o]) / z) * (f[o] - m) ** 2; }
      });
    }
    moved = 0;
    for (let k = 0; k <= M; k++) { const d = slope[k] / (3 * bend[k]); theta[k] += d; moved = Math.max(moved, Math.abs(d)); }
  }
  return [...theta].map((t, k) => (k < M ? t - theta[0] : t));
}
