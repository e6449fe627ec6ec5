/* Rows of prompts, columns of models: filters, sorts, scores as bars. Pictures are built when they come near. */
const items = rows.map((row, index) => {
  const about = make("div", { class: "about" }, make("h3", { class: row.prompt.length > 120 ? "long" : "" }, row.prompt));
  const cells = make("div", { class: "cells" + small(row) });
  const element = make("article", { class: "row card", "aria-label": row.prompt }, about, cells);
  const text = `${row.prompt} ${row.category} ${row.challenge}`.toLowerCase();
  return { row, index, about, cells, element, text, near: false, painted: "" };
});
const itemOf = new Map(items.map((item) => [item.element, item]));
const watcher = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    const item = itemOf.get(target);
    item.near = isIntersecting;
    if (item.near) paint(item);
  }
}, { rootMargin: "900px 0px" });

/** Models in the order of the columns, without the hidden ones. */
function columns() {
  const wanted = state.cols.split(".").filter((c) => c !== "").map(Number).filter((m) => m >= 0 && m < models.length);
  const shown = wanted.length ? [...new Set(wanted)] : models.map((_, m) => m);
  return state.pin ? [0, ...shown.filter((m) => m !== 0)] : shown;
}

const paintKey = () => [state.judge, state.model, columns(), state.pin, revision].join("|");

function paint(item) {
  const key = paintKey();
  if (item.painted === key) return;
  item.painted = key;
  const { row } = item, shown = columns();
  item.about.replaceChildren(item.about.firstChild, tags(item), ...(judges.length && others.length ? [gainTable(item)] : []));
  item.element.classList.toggle("worse", Boolean(item.worse));
  item.cells.style.setProperty("--models", shown.length);
  item.cells.style.setProperty("--across", Math.ceil(seeds.length / Math.ceil(seeds.length / (shown.length > 3 ? 2 : 4))));
  item.cells.replaceChildren(...shown.map((m) => cell(item, m, state.pin && m === 0)));
}

function cell(item, m, pinned) {
  const { row } = item, ranks = ranksOf(row);
  const pictures = seeds.map((seed, s) => {
    const image = make("img", { src: row.images[m][s], width: row.width, height: row.height, loading: "lazy", decoding: "async", alt: "" });
    image.addEventListener("error", () => image.replaceWith(make("span", { class: "lost small" }, "picture missing")));
    const name = `Compare ${models[m]}, seed ${seed}: ${row.prompt}`;
    const picture = button(image, () => open(item.index, s, m), { class: "picture", "aria-label": name, "data-seed": s });
    return make("div", {}, picture, ranks && rankBar(ranks, m, s));
  });
  return make("figure", { class: pinned ? "pinned" : "" }, make("figcaption", {}, models[m]), make("div", { class: "seeds" }, ...pictures));
}

/** Scores of the chosen judge within one prompt: lowest, highest, and each picture's rank from 1. */
function ranksOf(row) {
  if (!judges.length) return null;
  const scores = row.scores[judgeIndex()], all = scores.flat().sort((x, y) => y - x);
  return { scores, all, low: all.at(-1), high: all[0] };
}

function rankBar({ scores, all, low, high }, m, s) {
  const score = scores[m][s], rank = all.indexOf(score) + 1, shade = Math.floor((5 * (rank - 1)) / all.length);
  const text = `${state.judge}: ${score.toFixed(3)}, rank ${rank} of ${all.length} within this prompt`;
  const fill = make("i");
  fill.style.width = (high > low ? 8 + (92 * (score - low)) / (high - low) : 100) + "%";
  return make("span", { class: `rank rank-${high > low ? shade : 2}`, role: "img", "aria-label": text, title: text }, fill);
}

function gainBar(gain, j) {
  const half = Math.min(50, (50 * Math.abs(gain)) / reach[j]), fill = make("i");
  fill.style.width = half + "%";
  fill.style.left = (gain < 0 ? 50 - half : 50) + "%";
  const text = `${judgeNames[j]}: mean gain of ${state.model} ${signed(gain)}${unit(j)}`;
  return make("span", { class: "bar " + tone(gain, j), role: "img", "aria-label": text, title: text }, fill);
}

/** How many units fill half a bar: 3 s.d., or the largest gain of a judge without one. */
const reach = judges.map((judge, j) => (judge.sd !== null ? 3 :
  rows.reduce((most, row) => Math.max(most, ...others.flatMap((_, m) => gains(row, j, m + 1).map(Math.abs))), 1e-12)));

function gainTable(item) {
  return make("div", { class: "gains" }, ...judges.flatMap((judge, j) => {
    const chosen = judge.name === state.judge ? " chosen" : "";
    return [make("span", { class: "soft" + chosen, title: judge.name + (judge.trained ? " (trained on)" : "") }, label(j)),
      gainBar(item.gains[j], j), make("span", { class: "number " + tone(item.gains[j], j) + chosen }, signed(item.gains[j]))];
  }));
}

function tags(item) {
  const { row } = item, given = votesOf.get(row.id) ?? [], broken = given.filter((vote) => vote.broken).length;
  const on = flagged(row);
  const flag = button(on ? "Flagged" : "Flag", () => {
    if (on) delete kept[KEY + "flag:" + row.id];
    else kept[KEY + "flag:" + row.id] = "1";
    revision += 1;
    show();
    item.about.querySelector(".flag").focus();
  }, { class: "tag flag", "aria-pressed": String(on), "aria-label": `Flag: ${row.prompt}` });
  return make("div", { class: "tags" }, ...[row.category, row.challenge].filter(Boolean).map((text) => make("span", { class: "tag" }, text)),
    item.worse ? make("span", { class: "tag bad" }, "regressed") : null,
    given.length ? make("span", { class: "tag" }, plural(given.length, "vote")) : null,
    broken ? make("span", { class: "tag bad" }, `${broken} broken`) : null, flag);
}

/* ---- sort and filter ----------------------------------------------------------------------- */
let shown = [], measuredFor = "";

function measure() {
  const key = state.judge + "|" + state.model;
  if (measuredFor === key || !judges.length || !others.length) return;
  measuredFor = key;
  const j = judgeIndex(), m = modelIndex();
  for (const item of items) {
    item.gains = judges.map((_, k) => mean(gains(item.row, k, m)));
    item.gain = item.gains[j];
    item.score = mean(item.row.scores[j][m]);
    item.worse = item.gain < -margin(j);
    item.spread = Math.max(...item.gains) - Math.min(...item.gains);
    item.disagree = item.gains.some((g, k) => g > margin(k)) && item.gains.some((g, k) => g < -margin(k));
  }
}

const orders = {
  worst: (x, y) => x.gain - y.gain, best: (x, y) => y.gain - x.gain, low: (x, y) => x.score - y.score,
  high: (x, y) => y.score - x.score, disagreement: (x, y) => y.spread - x.spread, file: () => 0,
  votes: (x, y) => (votesOf.get(y.row.id)?.length ?? 0) - (votesOf.get(x.row.id)?.length ?? 0),
};
const tests = {
  lost: (item) => item.worse, disagree: (item) => item.disagree, voted: (item) => votesOf.has(item.row.id),
  flagged: (item) => flagged(item.row) || (votesOf.get(item.row.id) ?? []).some((vote) => vote.broken),
  unvoted: (item) => !votesOf.has(item.row.id),
};
const chosenChips = () => state.only.split(".").filter((name) => tests[name]);

function showGrid() {
  measure();
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean), only = chosenChips(), before = shown;
  const ordered = [...items].sort((x, y) => orders[state.sort](x, y) || x.index - y.index);
  shown = ordered.filter((item) => (!state.category || item.row.category === state.category) &&
    (!state.challenge || item.row.challenge === state.challenge) && only.every((name) => tests[name](item)) &&
    words.every((word) => item.text.includes(word)));
  // Only when the list changed: taking elements out and in again would lose the focus.
  if (shown.length !== before.length || shown.some((item, i) => item !== before[i])) {
    ui.rows.replaceChildren(...shown.map((item) => item.element));
  }
  for (const item of items) if (item.near) paint(item);
  ui.count.textContent = `${shown.length} of ${plural(items.length, "prompt")}`;
  ui.empty.hidden = shown.length > 0;
  for (const id of ["sort", "judge", "model", "category", "challenge", "text"]) if (ui[id].value !== state[id]) ui[id].value = state[id];
  for (const chip of ui.only.children) chip.setAttribute("aria-pressed", String(only.includes(chip.dataset.chip)));
  showColumns();
}

function showColumns() {
  const order = columns(), hidden = models.map((_, m) => m).filter((m) => !order.includes(m));
  const move = (m, by) => {
    const next = order.filter((other) => other !== m);
    next.splice(order.indexOf(m) + by, 0, m);
    change({ cols: next.join(".") });
    ui["column-list"].querySelector(`[data-model="${m}"] button:not(:disabled)`)?.focus();
  };
  const line = (m) => {
    const at = order.indexOf(m), fixed = state.pin && m === 0, first = state.pin ? 1 : 0;
    const toggle = () => change({ cols: (at < 0 ? [...order, m] : order.filter((other) => other !== m)).join(".") });
    const tick = make("input", { type: "checkbox", checked: at >= 0, disabled: fixed || (at >= 0 && order.length === 1), change: toggle });
    return make("div", { class: "line", "data-model": m }, make("label", {}, tick, models[m]),
      button("\u2190", () => move(m, -1), { disabled: at < 0 || fixed || at <= first, "aria-label": `Move ${models[m]} left` }),
      button("\u2192", () => move(m, 1), { disabled: at < 0 || fixed || at === order.length - 1, "aria-label": `Move ${models[m]} right` }));
  };
  const pin = make("input", { type: "checkbox", checked: Boolean(state.pin), change: () => change({ pin: state.pin ? "" : "1" }) });
  ui["column-list"].replaceChildren(...[...order, ...hidden].map(line), make("label", {}, pin, `Pin ${base}`));
}

function buildGrid() {
  for (const id of ["sort", "judge", "model", "category", "challenge", "text"]) {
    ui[id].addEventListener("input", () => change({ [id]: ui[id].value }));
  }
  for (const chip of ui.only.children) chip.addEventListener("click", () => {
    const on = chosenChips(), name = chip.dataset.chip;
    change({ only: (on.includes(name) ? on.filter((other) => other !== name) : [...on, name]).join(".") });
  });
  ui.clear.addEventListener("click", () => change({ text: "", only: "", category: "", challenge: "" }));
  ui.tools.addEventListener("submit", (event) => event.preventDefault());
  for (const item of items) watcher.observe(item.element);
}
