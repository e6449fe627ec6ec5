"use strict";
/* The page's data, its state in the address, and small helpers. The other files follow in one program. */

const block = document.getElementById("data");
const data = JSON.parse(block.textContent);
block.remove(); // in blind voting nothing in the document may name a model
const ui = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const { models, seeds, judges, rows } = data;
const base = models[0], others = models.slice(1);
const byPrompt = new Map(rows.map((row, index) => [row.id, index]));

/** Make an element. Children that are strings become text, never markup: prompts are not trusted. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}
const button = (text, click, attributes = {}) => make("button", { type: "button", click, ...attributes }, text);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const signed = (value, digits = 2) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
const percent = (value) => (100 * value).toFixed(1) + " %";
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const say = (text) => (ui.live.textContent = text);
const small = (row) => (Math.max(row.width, row.height) <= 256 ? " pixels" : "");

/* ---- scores -------------------------------------------------------------------------------- */
const judgeNames = judges.map((judge) => judge.name);
const unit = (j) => (judges[j].sd === null ? "" : " s.d.");
const margin = (j) => (judges[j].sd === null ? 0 : data.margin);
const tone = (gain, j) => (gain > margin(j) ? "good" : gain < -margin(j) ? "bad" : "soft");
const label = (j) => judgeNames[j] + (judges[j].trained ? " \u2020" : "");

/** Gains of a model over another, one for each seed, in s.d. of the base's own seeds (raw without one). */
function gains(row, j, model, over = 0) {
  return row.scores[j][model].map((score, s) => (score - row.scores[j][over][s]) / (judges[j].sd ?? 1));
}

/* ---- the view, kept in the address ---------------------------------------------------------- */
const modes = ["side", "slider", "flicker", "difference"];
const sorts = ["worst", "best", "low", "high", "disagreement", "votes", "file"];
const defaults = {
  view: "review", sort: judges.length && others.length ? "worst" : "file", judge: judgeNames[0] ?? "",
  model: others[0] ?? base, text: "", category: "", challenge: "", only: "", cols: "", pin: "1", prompt: "",
  seed: String(seeds[0]), a: base, b: others[0] ?? base, mode: "side", zoom: "", source: "", theme: "",
};
const allowed = {
  view: ["review", "summary", "vote"], sort: sorts, judge: judgeNames, model: others, pin: ["", "1"], a: models,
  b: models, mode: modes, source: [...judgeNames, "votes"], theme: ["light", "dark"],
  seed: seeds.map(String), prompt: rows.map((row) => row.id),
};
const state = { ...defaults };

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(defaults)) {
    const value = given.get(key);
    state[key] = value !== null && (!allowed[key] || allowed[key].includes(value)) ? value : defaults[key];
  }
}

function fragmentOf(view) {
  const told = view.view === "vote" ? { view: "vote", theme: view.theme } : view; // a blind view names no model
  const changed = Object.entries(told).filter(([key, value]) => value !== defaults[key]);
  return "#" + new URLSearchParams(changed).toString();
}

function writeFragment() {
  try {
    history.replaceState(null, "", fragmentOf(state));
  } catch {
    location.hash = fragmentOf(state); // some browsers refuse or ration replaceState
  }
}

function change(update) {
  Object.assign(state, update);
  writeFragment();
  show();
}

const judgeIndex = () => Math.max(0, judgeNames.indexOf(state.judge));
const modelIndex = (name = state.model) => models.indexOf(name);
