/* Showing the view that the address names, and beginning. */
const places = { review: ui.review, summary: ui.summary, vote: ui.vote };
const main = document.querySelector("main");

function show() {
  if (session.rater) state.view = "vote"; // names stay hidden until the session ends
  const blind = state.view === "vote";
  // Taken out of the document, not only hidden: nothing in it may name a model.
  if (main.firstElementChild !== places[state.view] || main.children.length > 1) main.replaceChildren(places[state.view]);
  document.title = ui.heading.textContent = blind ? "Blind vote" : data.title;
  ui.subtitle.hidden = blind;
  if (blind) { ui.dialog.remove(); writeFragment(); } else if (!ui.dialog.isConnected) document.body.append(ui.dialog);
  ui.views.hidden = Boolean(session.rater);
  for (const one of ui.views.children) one.setAttribute("aria-current", state.view === one.dataset.view ? "page" : "false");
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  ui.theme.textContent = isDark() ? "Light" : "Dark";
  if (blind) return showVote();
  if (state.view === "summary") showSummary();
  else showGrid();
  showCompare();
}

const isDark = () => (state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

function start() {
  buildGrid();
  buildCompare();
  buildVote();
  readVotes();
  readFragment();
  for (const one of ui.views.children) one.addEventListener("click", () => change({ view: one.dataset.view, prompt: "" }));
  ui.source.addEventListener("change", (event) => change({ source: event.target.value }));
  ui.of.addEventListener("change", (event) => change({ model: event.target.value }));
  ui.theme.addEventListener("click", () => change({ theme: isDark() ? "light" : "dark" }));
  if (!(kept instanceof Storage)) warn("This browser keeps nothing for this page: export votes before you close it.");
  show();
  addEventListener("hashchange", () => { readFragment(); show(); });
  addEventListener("storage", (event) => { if (event.key === null || event.key.startsWith(KEY)) { readVotes(); show(); } });
  addEventListener("beforeunload", (event) => { if (unexported()) event.preventDefault(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

start();
