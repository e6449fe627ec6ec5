/* Figures that follow from one judge or from the votes in this browser. */
const interval = ({ value, low, high }) =>
  !Number.isFinite(value) ? "\u2013" : value.toFixed(3) + (Number.isFinite(low) ? ` [${low.toFixed(3)}, ${high.toFixed(3)}]` : "");

function table(head, body, name) {
  const columns = make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)));
  return make("div", { class: "scroll" }, make("table", { class: name }, make("thead", {}, columns), make("tbody", {}, ...body)));
}
const section = (title, ...children) => make("section", { class: "card part", "aria-label": title }, make("h2", {}, title), ...children);

/** An interval on a line from 0 to 1, or from low to high, with a mark at the middle. */
function forest({ value, low, high }, name, from = 0, to = 1) {
  const at = (v) => Math.max(0, Math.min(100, (100 * (v - from)) / (to - from))), line = make("i"), dot = make("b");
  line.style.left = at(low) + "%";
  line.style.width = at(high) - at(low) + "%";
  dot.style.left = at(value) + "%";
  return make("div", { class: "forest " + name, "aria-hidden": "true", title: `${from} to ${to}` }, line, dot);
}
const verdict = ({ value, low, high }, middle) => (!(low > middle || high < middle) ? "soft" : value > middle ? "good" : "bad");

function matrix(tallies) {
  const cells = models.flatMap((_, i) => models.map((_, j) => [i, j]));
  const rates = bootstrap(tallies, (sums) => cells.map(([i, j]) => (i === j ? NaN : rate(sums, i, j))));
  const M = models.length, cell = (i, j) => make("td", { class: "number " + verdict(rates[i * M + j], 0.5) }, interval(rates[i * M + j]));
  return table(["", ...models.map((name) => "over " + name)],
    models.map((name, i) => make("tr", {}, make("th", { scope: "row" }, name), ...models.map((_, j) => cell(i, j)))));
}

function ladder(tallies) {
  const found = bootstrap(tallies, strengths).slice(0, models.length); // the last one is the ties' parameter
  const reach = Math.max(0.5, ...found.flatMap((s) => [s.low, s.high]).filter(Number.isFinite).map(Math.abs));
  return table(["Model", `log-strength over ${base}`, "[95 %]"], models.map((name, m) => make("tr", {}, make("th", { scope: "row" }, name),
    make("td", {}, m ? forest(found[m], verdict(found[m], 0), -reach, reach) : ""),
    make("td", { class: "number" }, m ? interval(found[m]) : "reference"))));
}

function byCategory(tallies) {
  const m = modelIndex(), groups = Map.groupBy(tallies, (one) => one.category || "no category");
  if (groups.size < 2) return null;
  return table(["Category", "", `win rate of ${state.model} over ${base}`, "prompts"], [...groups].sort().map(([name, group]) => {
    const [found] = bootstrap(group, (sums) => [rate(sums, m, 0)]);
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, forest(found, verdict(found, 0.5))),
      make("td", { class: "number" }, interval(found)), make("td", { class: "number" }, String(group.length)));
  }));
}

function histogram(j) {
  const values = items.map((item) => item.gains[j]), most = Math.max(...values.map(Math.abs), 1e-12), bins = new Array(21).fill(0);
  for (const value of values) bins[Math.round(10 + (10 * value) / most)] += 1;
  const tallest = Math.max(...bins);
  const bars = bins.map((count, k) => {
    const middle = ((k - 10) / 10) * most, title = `about ${signed(middle)}${unit(j)}: ${plural(count, "prompt")}`;
    const bar = make("i", { class: tone(middle, j), title });
    bar.style.height = (100 * count) / tallest + "%";
    return bar;
  });
  const many = (name) => values.filter((value) => tone(value, j) === name).length;
  const text = `Gains of ${state.model} by ${judgeNames[j]}: ${plural(many("good"), "prompt")} better, ${many("bad")} worse`;
  return make("figure", {}, make("div", { class: "histogram", role: "img", "aria-label": text }, ...bars),
    make("figcaption", {}, `${signed(-most)} to ${signed(most)}${unit(j)}, mean over a prompt's seeds. ${text}.`));
}

function extremes(j, best) {
  const ordered = [...items].sort((x, y) => (best ? -1 : 1) * (x.gains[j] - y.gains[j])).slice(0, 8);
  const address = (row) => fragmentOf({ ...defaults, judge: state.judge, model: state.model, b: state.model, prompt: row.id });
  return make("ol", {}, ...ordered.map(({ row, gains: found }) => make("li", {},
    make("span", { class: "number " + tone(found[j], j) }, signed(found[j])), " ", make("a", { href: address(row) }, row.prompt))));
}

let summarised = "";

function showSummary() {
  const source = state.source || (judges.length ? state.judge : "votes"), key = [source, state.model, revision].join("|");
  if (summarised === key) return;
  summarised = key;
  measure();
  ui.source.value = source;
  ui.of.value = state.model;
  const given = [...votesOf.values()].flat().filter((vote) => vote.aspect === session.aspect), bad = given.filter((vote) => vote.choice === "both_bad").length;
  const tallies = tally(source), some = source !== "votes" || given.length > 0, j = judgeNames.indexOf(source);
  const told = given.length ? `Both bad: ${percent(bad / given.length)} of ${plural(given.length, "vote")}; here they count as ties.` : "No votes yet.";
  const categories = some ? byCategory(tallies) : null;
  ui.figures.replaceChildren(...[
    source === "votes" ? make("p", { class: "soft" }, told) : null,
    some ? section("Win rates", matrix(tallies), make("p", { class: "soft small" }, "Row over column, on the prompts in this file; ties count half; intervals resample prompts.")) : null,
    some && others.length > 1 ? section("Strengths (Bradley-Terry with ties)", ladder(tallies)) : null,
    categories ? section("Categories", categories) : null,
    j >= 0 ? section("Gains", histogram(j)) : null,
    j >= 0 ? make("div", { class: "two-columns" }, section("Largest losses", extremes(j, false)), section("Largest gains", extremes(j, true))) : null,
  ].filter(Boolean));
}
