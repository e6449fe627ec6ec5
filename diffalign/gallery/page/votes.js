/* Votes: each is an item of its own in localStorage, so that two tabs never write over each other. */
const KEY = `diffalign:${data.gallery}:`;
const kept = (() => {
  try {
    localStorage[KEY + "probe"] = "";
    delete localStorage[KEY + "probe"];
    return localStorage;
  } catch {
    return {}; // the browser keeps nothing; start() says so
  }
})();
const keptKeys = (prefix) => Object.keys(kept).filter((key) => key.startsWith(prefix));
const voteKey = (vote) => `${KEY}vote:${vote.rater}:${vote.time}`;
const flagged = (row) => KEY + "flag:" + row.id in kept;

let votes = []; // of all raters in this browser, by time
let votesOf = new Map(); // by prompt id, without repeats, anchors and skipped pairs
let revision = 0; // of votes and flags, so that what shows them is drawn anew

function readVotes() {
  const found = keptKeys(KEY + "vote:").map((key) => JSON.parse(kept[key]));
  votes = found.sort((x, y) => (x.time < y.time ? -1 : 1));
  // The last word of a rater on a pair counts: a server keeps an answer that was taken back, too.
  const last = new Map(votes.filter(counts).map((vote) => [vote.rater + "|" + vote.aspect + "|" + pairKey(vote), vote]));
  votesOf = Map.groupBy(last.values(), (vote) => vote.prompt_id);
  revision += 1;
}
const counts = (vote) => vote.choice !== "skip" && !vote.repeat_of && !vote.anchor;
const pairKey = ({ prompt_id, seed, a, b }) => [prompt_id, seed, ...[a, b].map((side) => models.indexOf(side.model)).sort((x, y) => x - y)].join("|");

function keep(vote, sent) {
  try {
    kept[voteKey(vote)] = JSON.stringify(vote);
    if (data.server && !sent) kept[KEY + "unsent:" + voteKey(vote)] = "";
  } catch (error) {
    warn(`This vote could not be saved in the browser (${error.name}): export the votes now.`);
    return false;
  }
  readVotes();
  return true;
}

const warn = (text) => Object.assign(ui.warning, { textContent: text, hidden: !text });

function unexported() {
  const until = kept[KEY + "exported"] ?? "";
  return data.server ? keptKeys(KEY + "unsent:").length : votes.filter((vote) => vote.time > until).length;
}

function exportVotes() {
  const text = votes.map((vote) => JSON.stringify(vote) + "\n").join("");
  const address = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  make("a", { href: address, download: `votes-${data.gallery.slice(0, 8)}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  if (votes.length) kept[KEY + "exported"] = votes.at(-1).time;
  say(`${plural(votes.length, "vote")} exported`);
  show();
}

/** Why a line is no vote of this gallery, or an empty string. */
function wrong(vote) {
  const row = rows[byPrompt.get(vote?.prompt_id)], seed = seeds.indexOf(vote?.seed);
  const is = (value, ...choices) => choices.includes(value);
  const side = (shown) => row?.sha256[models.indexOf(shown?.model)]?.[seed] === shown?.sha256;
  if (vote?.v !== 1 || typeof vote.rater !== "string" || !vote.rater) return "is no vote";
  if (vote.gallery !== data.gallery) return "is a vote of another gallery";
  if (!row || seed < 0 || !side(vote.a) || !side(vote.b)) return "votes on pictures that are not in this gallery";
  const timed = !isNaN(Date.parse(vote.time)) && vote.ms >= 0;
  if (!timed || !is(vote.left, "a", "b") || !is(vote.choice, "a", "b", "tie", "both_bad", "skip")) return "is damaged";
  return "";
}

/** Merge a file's votes with those here; a file with a wrong line changes nothing. */
function importVotes(text, name) {
  const found = [], lines = text.split("\n");
  for (const [i, line] of lines.entries()) {
    if (!line.trim()) continue;
    let vote = null;
    try { vote = JSON.parse(line); } catch { /* said below */ }
    const reason = wrong(vote);
    if (reason) return warn(`${name}, line ${i + 1} ${reason}; nothing was imported.`);
    found.push(vote);
  }
  const fresh = found.filter((vote) => !(voteKey(vote) in kept));
  if (!fresh.every((vote) => keep(vote))) return;
  warn("");
  say(`${plural(fresh.length, "vote")} imported, ${found.length - fresh.length} were here already`);
  show();
}

/* ---- the server that the page came from, if any ---------------------------------------------- */
function ask(path, options = {}) {
  const token = new URLSearchParams(location.search).get("token");
  return fetch(path, { ...options, headers: { ...(token && { Authorization: `Bearer ${token}` }), ...options.headers } });
}

/** Send what the server has not got yet; what it refuses is said and stays here for the export. */
async function send() {
  let trouble = "";
  for (const key of keptKeys(KEY + "unsent:")) {
    try {
      const undone = kept[key], body = undone || kept[key.slice((KEY + "unsent:").length)], method = undone ? "DELETE" : "POST";
      const answer = await ask("./votes", { method, body, headers: { "Content-Type": "application/json" }, keepalive: true });
      if (answer.ok && kept[key] === undone) delete kept[key]; // it may have been undone while it was on its way
      else trouble = `The server refused a vote: ${(await answer.json()).detail}`;
    } catch {
      trouble = "The server does not answer: votes stay in this browser and are sent with the next one.";
      break;
    }
  }
  warn(trouble);
}

async function receive(rater) {
  try {
    const answer = await ask("./votes?rater=" + encodeURIComponent(rater));
    if (!answer.ok) return warn(`The server sent no votes: ${(await answer.json()).detail}`);
    for (const line of (await answer.text()).split("\n").filter(Boolean).map(JSON.parse)) if (!(KEY + "unsent:" + voteKey(line) in kept)) keep(line, true);
  } catch {
    warn("The server does not answer: votes stay in this browser until it does.");
  }
}

/** The pair that the server wants to be voted on, or null where it leaves that to the page. */
async function chosenByServer(rater) {
  try {
    const answer = await ask("./next?" + new URLSearchParams({ rater, aspect: session.aspect })), told = answer.status === 200 && (await answer.json());
    const row = rows[byPrompt.get(told.prompt_id)], at = [seeds.indexOf(told.seed), models.indexOf(told.a), models.indexOf(told.b)];
    return row && at.every((k) => k >= 0) ? pairOf(row, ...at) : null;
  } catch {
    return null; // send() says that the server is silent
  }
}
