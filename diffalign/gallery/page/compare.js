/* Two pictures of one prompt and seed, large: side by side, slider, flicker, difference; one zoom for both. */
let flipped = false; // flicker: whether the second picture is on top
const lens = { z: 1, x: 0, y: 0 }; // zoom, and shift in percent of the frame

function open(index, s, m) {
  const pair = m > 0 ? { a: base, b: models[m], model: models[m] } : {};
  change({ prompt: rows[index].id, seed: String(seeds[s]), zoom: "", ...pair });
}

/** The row and seed that are open, or null. */
function opened() {
  const index = byPrompt.get(state.prompt), s = seeds.map(String).indexOf(state.seed);
  return index === undefined || s < 0 ? null : { index, s, row: rows[index] };
}

let drawn = "";

function showCompare() {
  const now = opened();
  if (!now) return ui.dialog.open ? ui.dialog.close() : undefined;
  const { row, s } = now, pair = [modelIndex(state.a), modelIndex(state.b)];
  ui["view-prompt"].textContent = row.prompt;
  ui["view-place"].textContent = [`seed ${seeds[s]}`, row.category, row.challenge].filter(Boolean).join(", ");
  ui.a.value = state.a;
  ui.b.value = state.b;
  ui.cut.hidden = state.mode !== "slider";
  for (const one of ui.modes.children) one.setAttribute("aria-pressed", String(one.dataset.mode === state.mode));
  const key = [row.id, s, ...pair].join("|");
  if (drawn !== key) {
    ui.stage.replaceChildren(...pair.map((m, side) => frame(row, m, s, side)));
    ui["view-scores"].replaceChildren(scoreTable(row, s, pair));
    flipped = false;
  }
  drawn = key;
  ui.stage.className = "stage " + state.mode + small(row);
  const [z, x, y] = state.zoom.split(",").map(Number);
  look(Number.isFinite(z) && z > 1 ? z : 1, x || 0, y || 0, false);
  showCut();
  if (!ui.dialog.open) ui.dialog.showModal();
}

function frame(row, m, s, side) {
  const image = make("img", { src: row.images[m][s], alt: `${row.prompt}, by ${models[m]}`, draggable: "false" });
  return make("figure", { class: side ? "second" : "first" }, make("figcaption", {}, models[m]), make("div", { class: "frame" }, image));
}

function showCut() {
  ui.stage.style.setProperty("--cut", ui.cut.value + "%");
  ui.stage.classList.toggle("flipped", state.mode === "flicker" && flipped);
}

function flicker() {
  if (state.mode !== "flicker") return change({ mode: "flicker" });
  flipped = !flipped;
  showCut();
  say(flipped ? state.b : state.a);
}

function scoreTable(row, s, pair) {
  const body = judges.map(({ name, trained }, j) => {
    const gain = gains(row, j, pair[1], pair[0])[s];
    return make("tr", {}, make("th", { scope: "row" }, name + (trained ? " (trained on)" : "")),
      ...pair.map((m) => make("td", { class: "number" }, row.scores[j][m][s].toFixed(3))),
      make("td", { class: "number " + tone(gain, j) }, signed(gain) + unit(j)));
  });
  const head = ["", ...pair.map((m) => models[m]), "gain"].map((name) => make("th", { scope: "col" }, name));
  return body.length ? make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)) : make("span");
}

/* ---- zoom and pan, the same for both pictures ------------------------------------------------ */
function look(z, x, y, kept = true) {
  const room = 50 * (z - 1); // so that no frame loses its picture
  Object.assign(lens, { z, x: Math.max(-room, Math.min(room, x)), y: Math.max(-room, Math.min(room, y)) });
  for (const name of ["x", "y"]) ui.stage.style.setProperty("--" + name, lens[name] + "%");
  ui.stage.style.setProperty("--z", lens.z);
  ui.stage.classList.toggle("zoomed", lens.z > 1);
  if (!kept) return;
  state.zoom = lens.z > 1 ? [lens.z, lens.x, lens.y].map((v) => Number(v.toFixed(2))).join(",") : "";
  writeFragment();
}

/** Zoom by a factor about a point, in percent of the frame from its middle. */
function zoomBy(factor, px = 0, py = 0) {
  const z = Math.max(1, Math.min(40, lens.z * factor)), f = z / lens.z;
  look(z, px - (px - lens.x) * f, py - (py - lens.y) * f);
}

function pointOf(event) {
  const box = (event.target.closest(".frame") ?? ui.stage).getBoundingClientRect();
  return { x: (100 * (event.clientX - box.left)) / box.width - 50, y: (100 * (event.clientY - box.top)) / box.height - 50, box };
}

/** A click shows the picture at its full resolution there (small ones three times as large), or whole again. */
function fullSize(event) {
  const image = event.target.closest(".frame")?.querySelector("img");
  if (!image) return;
  const { x, y, box } = pointOf(event);
  const native = Math.max(image.naturalWidth / box.width, image.naturalHeight / box.height);
  if (lens.z > 1) look(1, 0, 0);
  else zoomBy(native > 1.2 ? native : 3, x, y);
}

function buildZoom() {
  const fingers = new Map();
  let moved = 0, apart = 0;
  const spread = ([p, q]) => Math.hypot(p.clientX - q.clientX, p.clientY - q.clientY);
  ui.stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = pointOf(event);
    zoomBy(Math.exp(-event.deltaY / 400), x, y);
  }, { passive: false });
  ui.stage.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    moved = fingers.size > 1 ? Infinity : 0;
    if (fingers.size === 2) apart = spread([...fingers.values()]);
  });
  ui.stage.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const [dx, dy] = [event.clientX - last.clientX, event.clientY - last.clientY], { x, y, box } = pointOf(event);
    moved += Math.abs(dx) + Math.abs(dy);
    fingers.set(event.pointerId, event);
    if (fingers.size === 2) {
      zoomBy(spread([...fingers.values()]) / apart, x, y);
      apart = spread([...fingers.values()]);
    } else look(lens.z, lens.x + (100 * dx) / box.width, lens.y + (100 * dy) / box.height);
  });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) ui.stage.addEventListener(name, (event) => {
    if (fingers.delete(event.pointerId) && name === "pointerup" && moved < 5) fullSize(event);
  });
}

/* ---- moving on ------------------------------------------------------------------------------- */
/** Move by seeds (running on into the next prompt) or by prompts, in the order on the page. */
function move(bySeeds, byPrompts) {
  const now = opened();
  if (!now || !shown.length) return;
  const place = Math.max(0, shown.findIndex((item) => item.index === now.index)), S = seeds.length;
  const n = shown.length * S, target = (((place + byPrompts) * S + now.s + bySeeds) % n + n) % n;
  change({ prompt: shown[Math.floor(target / S)].row.id, seed: String(seeds[target % S]), zoom: "" });
}

/** Go on where the viewer stopped: at the picture seen last. */
function leave() {
  const last = opened();
  if (!last) return;
  change({ prompt: "", seed: defaults.seed, zoom: "" });
  const item = items[last.index], m = columns().indexOf(modelIndex(state.b));
  item.element.scrollIntoView({ block: "nearest" });
  paint(item);
  item.cells.children[Math.max(0, m)]?.querySelector(`[data-seed="${last.s}"]`)?.focus();
}

function buildCompare() {
  const keys = {
    ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => look(1, 0, 0),
    " ": flicker, x: () => change({ a: state.b, b: state.a }),
  };
  modes.forEach((mode, i) => (keys[i + 1] = () => change({ mode })));
  for (const one of ui.dialog.querySelectorAll("[data-key]")) one.addEventListener("click", keys[one.dataset.key]);
  for (const id of ["a", "b"]) ui[id].addEventListener("change", (event) => change({ [id]: event.target.value }));
  ui.cut.addEventListener("input", showCut);
  addEventListener("keydown", (event) => {
    const own = event.target.closest("select, input") || (event.key === " " && event.target.closest("button:not([data-mode])"));
    if (!ui.dialog.open || own || !keys[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  ui.close.addEventListener("click", () => ui.dialog.close());
  ui.dialog.addEventListener("close", leave);
  buildZoom();
}
