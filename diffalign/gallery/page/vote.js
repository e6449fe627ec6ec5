/* Blind voting. What is shown next follows from the rater's name and votes alone, so that it can go on anywhere. */

const ROUND = 25; // in so many votes there are two repeats with sides swapped (8 %) and one anchor
const session = { rater: "", aspect: "overall", pair: null, since: 0, last: null };
const pairKey = (vote) => [vote.prompt_id, vote.seed, ...[vote.a.model, vote.b.model].map((name) => models.indexOf(name)).sort()].join("|");

const mine = () => votes.filter((vote) => vote.rater === session.rater && vote.aspect === session.aspect);
const sideOf = (row, m, s) => ({ model: models[m], sha256: row.sha256[m][s] });

/** The pair after these votes of the rater, or null when all were seen. */
function plan(given) {
  const n = given.length, h = (what) => hash([data.gallery, session.rater, session.aspect, Math.floor(n / ROUND), what].join("|"));
  if (n % ROUND === 1 + (h("anchor") % 4)) return anchor(h("which"));
  const again = [6 + (h("first") % 8), 15 + (h("second") % 9)].includes(n % ROUND) && repeat(given, h("which"));
  return again || firstRound(given) || widest(given);
}

function pairOf(row, s, i, j, more = {}) {
  const left = hash([data.gallery, session.rater, row.id, seeds[s], i, j].join("|")) % 2 ? "a" : "b";
  return { row, s, a: i, b: j, left, repeat_of: null, anchor: null, ...more };
}

/** An attention check: one picture, one side of it badly degraded by the page. */
function anchor(h) {
  const m = h % models.length, side = (h >>> 8) % 2 ? "a" : "b";
  return pairOf(rows[(h >>> 9) % rows.length], 0, m, m, { anchor: side, left: (h >>> 4) % 2 ? "a" : "b" });
}

function repeat(given, h) {
  const done = new Set(given.map((vote) => vote.repeat_of)), old = given.slice(0, -4).filter((vote) => counts(vote) && !done.has(vote.time));
  if (!old.length) return null;
  const vote = old[h % old.length], [a, b] = [models.indexOf(vote.a.model), models.indexOf(vote.b.model)];
  return pairOf(rows[byPrompt.get(vote.prompt_id)], seeds.indexOf(vote.seed), a, b, { left: vote.left === "a" ? "b" : "a", repeat_of: vote.time });
}

const shuffled = rows.map((_, p) => p).sort((x, y) => hash(data.gallery + rows[x].id) - hash(data.gallery + rows[y].id));

/** Every pair of models on every prompt once. All raters see the same pictures of it; each begins elsewhere, and
 *  the pairs of models take turns, so that every part of any rater's votes is balanced. */
function firstRound(given) {
  const seen = new Set(given.map(pairKey)), P = rows.length, from = hash(session.rater);
  for (let k = 0; k < P * pairs.length; k++) {
    const place = (k + from) % P, row = rows[shuffled[place]], [i, j] = pairs[(place + Math.floor(k / P) + (from >>> 16)) % pairs.length];
    const s = hash([data.gallery, row.id, i, j].join("|")) % seeds.length;
    if (!seen.has([row.id, seeds[s], i, j].join("|"))) return pairOf(row, s, i, j);
  }
  return null;
}

/** Half-width of the win rate of a pair of models, from the votes in this browser. */
function doubt([i, j]) {
  const shares = [...votesOf.values()].map((some) => {
    const own = some.filter((vote) => vote.aspect === session.aspect && [models[i], models[j]].includes(vote.a.model) && [models[i], models[j]].includes(vote.b.model));
    const won = own.map((vote) => (["a", "b"].includes(vote.choice) ? Number(vote[vote.choice].model === models[i]) : 0.5));
    return [won.reduce((sum, w) => sum + w, 0), own.length];
  });
  return halfWidth(shares.filter((share) => share[1]));
}

/** After the first round: other seeds of the pair of models that is least certain. */
function widest(given) {
  const seen = new Set(given.map(pairKey)), ordered = pairs.map((pair) => [doubt(pair), pair]).sort((x, y) => y[0] - x[0]);
  for (const [, [i, j]] of ordered) for (let s = 0; s < seeds.length; s++) for (const p of shuffled) {
    if (!seen.has([rows[p].id, seeds[s], i, j].join("|"))) return pairOf(rows[p], s, i, j);
  }
  return null;
}

/* ---- the session ------------------------------------------------------------------------------ */

const image = (pair, side) => pair.row.images[pair[side]][pair.s];
const sides = (pair) => [pair.left, pair.left === "a" ? "b" : "a"];

async function nextPair() {
  session.count = mine().length;
  const told = data.server && (await chosenByServer(session.rater)), row = told && rows[byPrompt.get(told.prompt_id)];
  const own = mine(), asked = row && [seeds.indexOf(told.seed), models.indexOf(told.a), models.indexOf(told.b)];
  session.pair = asked && asked.every((at) => at >= 0) ? pairOf(row, ...asked) : plan(own);
  await showPair();
  const next = plan([...own, { choice: "skip", time: "", prompt_id: "", a: {}, b: {} }]); // most likely
  if (next) for (const side of ["a", "b"]) Object.assign(new Image(), { src: image(next, side) }).decode().catch(() => {});
}

async function showPair() {
  const { pair } = session;
  ui.pair.replaceChildren();
  ui.asked.textContent = pair ? pair.row.prompt : "You have voted on every pair of this gallery. Thank you!";
  showProgress();
  if (!pair) return;
  const pictures = sides(pair).map((side, k) => {
    const degraded = pair.anchor && pair.anchor !== side;
    return make("img", { src: image(pair, side), alt: k ? "right picture" : "left picture", width: pair.row.width, height: pair.row.height, class: degraded ? "degraded" : "" });
  });
  ui.pair.className = "pair" + small(pair.row);
  ui.pair.replaceChildren(...pictures.map((picture, k) => make("figure", {}, make("figcaption", {}, k ? "B, right" : "A, left"), picture)));
  session.since = NaN;
  await Promise.all(pictures.map((picture) => picture.decode())).catch(() => warn("A picture of this pair is missing: skip it (s)."));
  if (session.pair === pair) session.since = performance.now();
}

function showProgress() {
  const own = mine(), left = rows.length * pairs.length - new Set(own.filter(counts).map(pairKey)).size;
  const width = Math.max(...pairs.map(doubt)), waiting = unexported();
  ui.progress.textContent = `${plural(own.length, "vote")}. ${left > 0 ? `${plural(left, "pair")} to go in the first round.` : "First round done."} ` +
    `Half-width of the least certain win rate: \u00b1${width.toFixed(3)} (95 %).` + (waiting ? ` ${waiting} ${data.server ? "not sent" : "not exported"}.` : "");
  ui.before.hidden = !session.last || !judges.length;
  if (!ui.before.hidden) ui["before-scores"].replaceChildren(lastScores());
}

function lastScores() {
  const { row, s, ...pair } = session.last;
  return table(["", "left", "right"], judges.map((judge, j) => make("tr", {}, make("th", { scope: "row" }, judge.name),
    ...sides(pair).map((side) => make("td", { class: "number" }, row.scores[j][pair[side]][s].toFixed(3))))));
}

async function answer(choice) {
  const { pair } = session, right = pair && sides(pair)[1];
  if (choice === "undo") return undo();
  if (!pair || (isNaN(session.since) && choice !== "skip")) return; // not looked at yet
  const vote = {
    v: 1, gallery: data.gallery, rater: session.rater, time: timeNow(), ms: Math.round(performance.now() - session.since) || 0,
    prompt_id: pair.row.id, prompt: pair.row.prompt, seed: seeds[pair.s], a: sideOf(pair.row, pair.a, pair.s), b: sideOf(pair.row, pair.b, pair.s),
    left: pair.left, choice: { left: pair.left, right }[choice] ?? choice, aspect: session.aspect, repeat_of: pair.repeat_of,
    anchor: pair.anchor, note: ui.note.value.trim(), broken: ui.broken.checked,
  };
  session.pair = null;
  if (!keep(vote)) { session.pair = pair; return; }
  ui.note.value = "";
  ui.broken.checked = false;
  session.last = pair.anchor ? session.last : pair;
  say(choice.replace("_", " "));
  if (data.server) await send();
  await nextPair();
}

/** Now, later than every vote of this rater, as a vote is named by its time. */
function timeNow() {
  const last = Math.max(0, ...votes.filter((vote) => vote.rater === session.rater).map((vote) => Date.parse(vote.time)));
  return new Date(Math.max(Date.now(), last + 1)).toISOString();
}

async function undo() {
  const last = mine().at(-1);
  if (!last) return say("nothing to undo");
  forget(last);
  say("undone");
  session.last = null;
  await nextPair();
}

function showVote() {
  ui.ballot.hidden = !session.rater;
  ui.welcome.hidden = Boolean(session.rater);
  ui.question.textContent = `Which is ${ui.aspect.selectedOptions[0].text}?`;
  if (session.rater && session.count !== mine().length) nextPair();
  else if (session.rater) showProgress();
}

async function begin(event) {
  event.preventDefault();
  Object.assign(session, { rater: ui.rater.value.trim(), aspect: ui.aspect.value, last: null, count: -1 });
  if (!session.rater) return;
  kept.setItem("diffalign:rater", session.rater);
  if (data.server) { await receive(session.rater); await send(); }
  show();
}

function endSession() {
  session.rater = "";
  change({ view: "review" });
}

function voteKeys(event) {
  if (!session.rater || event.altKey || event.ctrlKey || event.metaKey) return;
  const typing = event.target.closest("input:not([type=checkbox])");
  if (typing) return ["Escape", "Enter"].includes(event.key) ? typing.blur() : undefined;
  const found = ui.ballot.querySelector(`[aria-keyshortcuts="${CSS.escape(event.key)}"]`);
  if (!found && !["n", "b"].includes(event.key)) return;
  event.preventDefault();
  if (found) { if (!event.repeat) answer(found.dataset.choice); }
  else if (event.key === "n") ui.note.focus();
  else ui.broken.checked = !ui.broken.checked;
}

function buildVote() {
  ui.rater.value = kept.getItem("diffalign:rater") ?? `r-${hash(String(Math.random())).toString(16).slice(0, 4)}`;
  ui.welcome.addEventListener("submit", begin);
  for (const one of ui.ballot.querySelectorAll("[data-choice]")) one.addEventListener("click", () => answer(one.dataset.choice));
  ui.export.addEventListener("click", exportVotes);
  ui.import.addEventListener("click", () => ui.file.click());
  ui.file.addEventListener("change", async () => {
    for (const file of ui.file.files) importVotes(await file.text(), file.name);
    ui.file.value = "";
  });
  ui.end.addEventListener("click", endSession);
  addEventListener("keydown", voteKeys);
}
