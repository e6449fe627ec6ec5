/* Votes: each is an item of its own in localStorage, so that two tabs never write over each other. */

const KEY = `diffalign:${data.gallery}:`;
const kept = (() => {
  try {
    localStorage.setItem(KEY + "probe", "");
    localStorage.removeItem(KEY + "probe");
    return localStorage;
  } catch {
    const items = new Map(); // the browser keeps nothing; the page says so
    return {
      getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value),
      removeItem: (key) => items.delete(key), keys: () => [...items.keys()],
    };
  }
})();
const keptKeys = (prefix) => (kept.keys ? kept.keys() : Object.keys(kept)).filter((key) => key.startsWith(prefix));
const voteKey = (vote) => `${KEY}vote:${vote.rater}:${vote.time}`;
const flagged = (row) => kept.getItem(KEY + "flag:" + row.id) !== null;

let votes = []; // of all raters in this browser, by time
let votesOf = new Map(); // by prompt id, without repeats, anchors and skipped pairs
let revision = 0; // of votes and flags, so that what shows them is drawn anew

function readVotes() {
  const found = keptKeys(KEY + "vote:").map((key) => JSON.parse(kept.getItem(key)));
  votes = found.sort((x, y) => (x.time < y.time ? -1 : 1));
  votesOf = Map.groupBy(votes.filter(counts), (vote) => vote.prompt_id);
  revision += 1;
}
const counts = (vote) => vote.choice !== "skip" && !vote.repeat_of && !vote.anchor;

function keep(vote, sent) {
  try {
    kept.setItem(voteKey(vote), JSON.stringify(vote));
    if (data.server && !sent) kept.setItem(KEY + "unsent:" + voteKey(vote), "");
  } catch (error) {
    warn(`This vote could not be saved in the browser (${error.name}): export the votes now.`);
    return false;
  }
  readVotes();
  return true;
}

function forget(vote) {
  kept.removeItem(voteKey(vote));
  kept.removeItem(KEY + "unsent:" + voteKey(vote));
  readVotes();
}

function warn(text) {
  ui.warning.textContent = text;
  ui.warning.hidden = !text;
}

function unexported() {
  const until = kept.getItem(KEY + "exported") ?? "";
  return data.server ? keptKeys(KEY + "unsent:").length : votes.filter((vote) => vote.time > until).length;
}

function exportVotes() {
  const text = votes.map((vote) => JSON.stringify(vote) + "\n").join("");
  const address = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  make("a", { href: address, download: `votes-${data.gallery.slice(0, 8)}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  if (votes.length) kept.setItem(KEY + "exported", votes.at(-1).time);
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
  const fresh = found.filter((vote) => kept.getItem(voteKey(vote)) === null);
  if (!fresh.every((vote) => keep(vote))) return;
  warn("");
  say(`${plural(fresh.length, "vote")} imported, ${found.length - fresh.length} were here already`);
  show();
}

/* ---- the server that the page came from, if any ---------------------------------------------- */

function ask(path, query, options = {}) {
  const token = new URLSearchParams(location.search).get("token");
  const address = new URL(path, location.href);
  for (const [key, value] of Object.entries({ ...query, ...(token && { token }) })) address.searchParams.set(key, value);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(address, { ...options, headers: { ...headers, ...options.headers } });
}

/** Send what the server has not got yet; what it refuses is said and stays here for the export. */
async function send() {
  for (const key of keptKeys(KEY + "unsent:")) {
    const body = kept.getItem(key.slice((KEY + "unsent:").length));
    if (body === null) { kept.removeItem(key); continue; }
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await ask("./votes", {}, { method: "POST", body, headers, keepalive: true });
      if (!answer.ok) return warn(`The server refused a vote: ${(await answer.json()).detail}`);
    } catch {
      return warn("The server does not answer: votes stay in this browser and are sent with the next one.");
    }
    kept.removeItem(key);
    warn("");
  }
}

async function receive(rater) {
  try {
    const answer = await ask("./votes", { rater });
    if (!answer.ok) return warn(`The server sent no votes: ${(await answer.json()).detail}`);
    for (const line of (await answer.text()).split("\n").filter(Boolean)) keep(JSON.parse(line), true);
  } catch {
    warn("The server does not answer: votes stay in this browser until it does.");
  }
}

async function chosenByServer(rater) {
  try {
    const answer = await ask("./next", { rater });
    return answer.status === 200 ? await answer.json() : null;
  } catch {
    return null; // the page's own schedule goes on; send() says that the server is silent
  }
}
