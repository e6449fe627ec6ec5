/* Blind voting. What is shown next follows from the rater's name and votes alone, so that it can go on anywhere. */
const ROUND = 25; // in so many votes there are two repeats with sides swapped (8 %) and one anchor
const session = { rater: "", aspect: "overall", pair: null, since: 0, last: null };
const mine = () => votes.filter((vote) => vote.rater === session.rater && vote.aspect === session.aspect);
const sideOf = (row, m, s) => ({ model: models[m], sha256: row.sha256[m][s] });

const differ = (row, s, i, j) => row.sha256[i][s] !== row.sha256[j][s];
const firstSeed = (row, i, j) => hash([data.gallery, row.id, i, j].join("|")) % seeds.length; // for all raters
const firstPairs = rows.flatMap((row) => pairs.filter(([i, j]) => differ(row, firstSeed(row, i, j), i, j))).length;

/** The pair after these votes of the rater, or null when all were seen. */
const plan = (given) => special(given) ?? firstRound(given) ?? widest(given);

function special(given) {
  const n = given.length, h = (what) => hash([data.gallery, session.rater, session.aspect, Math.floor(n / ROUND), what].join("|"));
  if (n % ROUND === 1 + (h("anchor") % 4)) return anchor(h("which"));
  return [6 + (h("first") % 8), 15 + (h("second") % 9)].includes(n % ROUND) ? repeat(given, h("which")) : null;
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

const again = (vote, more) => pairOf(rows[byPrompt.get(vote.prompt_id)], seeds.indexOf(vote.seed),
  models.indexOf(vote.a.model), models.indexOf(vote.b.model), more);

function repeat(given, h) {
  const done = new Set(given.map((vote) => vote.repeat_of)), old = given.slice(0, -4).filter((vote) => counts(vote) && !done.has(vote.time));
  const vote = old[h % old.length];
  return vote ? again(vote, { left: vote.left === "a" ? "b" : "a", repeat_of: vote.time }) : null;
}

const shuffled = rows.map((row, p) => [hash(data.gallery + row.id), p]).sort((x, y) => x[0] - y[0]).map(([, p]) => p);

/** Every pair of models on every prompt once. All raters see the same pictures of it; each begins elsewhere, and
 *  the pairs of models take turns, so that every part of any rater's votes is balanced. */
function firstRound(given) {
  const seen = new Set(given.map(pairKey)), P = rows.length, from = hash(session.rater);
  for (let k = 0; k < P * pairs.length; k++) {
    const place = (k + from) % P, row = rows[shuffled[place]], [i, j] = pairs[(place + Math.floor(k / P) + (from >>> 16)) % pairs.length];
    const s = firstSeed(row, i, j);
    if (differ(row, s, i, j) && !seen.has([row.id, seeds[s], i, j].join("|"))) return pairOf(row, s, i, j);
  }
  return null;
}

/** Half-width of the win rate of a pair of models, from the votes in this browser. */
function doubt(pair) {
  const names = pair.map((m) => models[m]);
  const shares = [...votesOf.values()].map((some) => {
    const own = some.filter((vote) => vote.aspect === session.aspect && names.includes(vote.a.model) && names.includes(vote.b.model));
    const won = own.map((vote) => (["a", "b"].includes(vote.choice) ? Number(vote[vote.choice].model === names[0]) : 0.5));
    return [won.reduce((sum, w) => sum + w, 0), own.length];
  });
  return halfWidth(shares.filter((share) => share[1]));
}

/** After the first round: other seeds of the pair of models that is least certain. */
function widest(given) {
  const seen = new Set(given.map(pairKey)), ordered = pairs.map((pair) => [doubt(pair), pair]).sort((x, y) => y[0] - x[0]);
  for (const [, [i, j]] of ordered) for (let s = 0; s < seeds.length; s++) for (const p of shuffled) {
    if (differ(rows[p], s, i, j) && !seen.has([rows[p].id, seeds[s], i, j].join("|"))) return pairOf(rows[p], s, i, j);
  }
  return null;
}

/* ---- the session ------------------------------------------------------------------------------ */
const image = (pair, side) => pair.row.images[pair[side]][pair.s];
const sides = (pair) => [pair.left, pair.left === "a" ? "b" : "a"];

async function nextPair() {
  const own = mine();
  session.count = own.length;
  await showPair(special(own) ?? (data.server ? await chosenByServer(session.rater) : null) ?? plan(own));
  const next = plan([...own, { choice: "skip", time: "", prompt_id: "", a: {}, b: {} }]); // most likely
  if (next) for (const side of ["a", "b"]) Object.assign(new Image(), { src: image(next, side) }).decode().catch(() => {});
}

async function showPair(pair) {
  session.pair = pair;
  ui.pair.replaceChildren();
  ui.asked.textContent = pair ? pair.row.prompt : "You have voted on every pair of this gallery. Thank you!";
  showProgress();
  if (!pair) return;
  const pictures = sides(pair).map((side, k) => {
    const degraded = pair.anchor && pair.anchor !== side;
    const { width, height } = pair.row, alt = k ? "right picture" : "left picture";
    return make("img", { src: image(pair, side), alt, width, height, class: degraded ? "degraded" : "" });
  });
  ui.pair.className = "pair" + small(pair.row);
  ui.pair.replaceChildren(...pictures.map((picture, k) => make("figure", {}, make("figcaption", {}, k ? "B, right" : "A, left"), picture)));
  session.since = NaN;
  await Promise.all(pictures.map((picture) => picture.decode())).catch(() => warn("A picture of this pair is missing: skip it (s)."));
  if (session.pair === pair) session.since = performance.now();
}

function showProgress() {
  const own = mine(), left = firstPairs - new Set(own.filter((vote) => !vote.repeat_of && !vote.anchor).map(pairKey)).size;
  const width = Math.max(...pairs.map(doubt)), waiting = unexported();
  ui.progress.textContent = [plural(own.length, "vote"), left > 0 ? `${plural(left, "pair")} to go in the first round` : "first round done",
    `half-width of the least certain win rate \u00b1${width.toFixed(3)} (95 %)`,
    waiting ? `${waiting} ${data.server ? "not sent" : "not exported"}` : ""].filter(Boolean).join(" \u00b7 ");
  ui.before.hidden = !session.last || !judges.length;
  if (ui.before.hidden) return;
  const { row, s, ...pair } = session.last, cell = (j, side) => make("td", { class: "number" }, row.scores[j][pair[side]][s].toFixed(3));
  ui["before-scores"].replaceChildren(table(["", "left", "right"], judges.map((judge, j) =>
    make("tr", {}, make("th", { scope: "row" }, judge.name), ...sides(pair).map((side) => cell(j, side))))));
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
  if (!keep(vote)) return;
  session.pair = null;
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
  delete kept[voteKey(last)];
  if (data.server) kept[KEY + "unsent:" + voteKey(last)] = JSON.stringify(last); // sent as taken back
  readVotes();
  Object.assign(session, { pair: null, last: null, count: mine().length }); // no key votes until the pair is back
  if (data.server) await send();
  say("undone");
  await showPair(again(last, { left: last.left, repeat_of: last.repeat_of, anchor: last.anchor }));
}

function showVote() {
  ui.ballot.hidden = !session.rater;
  ui.welcome.hidden = Boolean(session.rater);
  ui.question.textContent = `Which is ${ui.aspect.selectedOptions[0].text}?`;
  if (session.rater && session.count !== mine().length) nextPair();
  else if (session.rater) showProgress();
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
  ui.rater.value = kept["diffalign:rater"] ?? `r-${hash(String(Math.random())).toString(16).slice(0, 4)}`;
  ui.welcome.addEventListener("submit", async (event) => {
    event.preventDefault();
    Object.assign(session, { rater: ui.rater.value.trim(), aspect: ui.aspect.value, last: null, count: -1 });
    kept["diffalign:rater"] = session.rater;
    say("");
    if (data.server) { await receive(session.rater); await send(); }
    show();
  });
  for (const one of ui.ballot.querySelectorAll("[data-choice]")) one.addEventListener("click", () => answer(one.dataset.choice));
  ui.export.addEventListener("click", exportVotes);
  ui.import.addEventListener("click", () => ui.file.click());
  ui.file.addEventListener("change", async () => {
    for (const file of ui.file.files) importVotes(await file.text(), file.name);
    ui.file.value = "";
  });
  ui.end.addEventListener("click", () => { session.rater = ""; change({ view: "review" }); });
  addEventListener("keydown", voteKeys);
}
