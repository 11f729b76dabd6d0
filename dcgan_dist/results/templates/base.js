// Shared by all parts of the page: its data, elements that are made without markup, the format of numbers.

const core = JSON.parse(document.getElementById("core").textContent);
const byKey = new Map(core.trials.map((trial) => [trial.key, trial]));

// Make an element. Text is inserted as text nodes: nothing on this page is parsed as markup.
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

function show(id, ...children) {
  const element = document.getElementById(id);
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// Numbers with about `digits` significant digits: 2e-4, 0.05, 53.1, 12,345.
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return short(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-2 || size >= 1e9)) return value.toExponential(Math.max(0, digits - 1)).replace(/\.?0+e/, "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

function short(value, most = 60) {
  const text = typeof value === "string" ? value : value === null || value === undefined ? "–" : JSON.stringify(value);
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

const plain = (name) => name.replaceAll("_", " ");
const lastPart = (key) => key.slice(key.lastIndexOf(".") + 1);
const finite = (value) => typeof value === "number" && Number.isFinite(value);
const scoreOf = (trial, name) => (trial.scores[name] ? trial.scores[name].value : null);
const trialName = (trial, most = 40) => short(trial.label, most);

function hours(seconds) {
  if (!finite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${number(seconds / 3600)} h`;
}

// Each verdict has its own symbol, so that it does not depend on colours alone.
const SYMBOLS = {
  stable: (r) => draw("circle", { r }),
  discriminator_wins: (r) => draw("path", { d: `M0 ${-1.15 * r}L${1.1 * r} ${0.85 * r}H${-1.1 * r}Z` }),
  collapse: (r) => draw("rect", { x: -0.9 * r, y: -0.9 * r, width: 1.8 * r, height: 1.8 * r }),
  oscillation: (r) => draw("path", { d: `M0 ${-1.25 * r}L${1.25 * r} 0L0 ${1.25 * r}L${-1.25 * r} 0Z` }),
  diverged: (r) => draw("path", { d: `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`, class: "cross" }),
  undecided: (r) => draw("path", { d: `M${-r} 0H${r}M0 ${-r}V${r}`, class: "cross" }),
};

function symbol(verdict, radius) {
  const shape = (SYMBOLS[verdict] || SYMBOLS.undecided)(radius);
  if (shape.getAttribute("class") === "cross") fill(shape, { fill: "none", "stroke-width": Math.max(2, radius / 2.4) }, []);
  return shape;
}

function verdictMark(verdict, score = null) {
  const name = SYMBOLS[verdict] ? verdict : "undecided";
  const shape = symbol(name, 5);
  fill(shape, shape.getAttribute("fill") === "none" ? { stroke: "currentColor" } : { fill: "currentColor" }, []);
  const icon = draw("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true", class: `mark-${name}` }, shape);
  return make("span", { class: "verdict" }, icon, short(plain(verdict || "not judged"), 24), finite(score) ? make("small", { title: "stability, 0 to 1" }, number(score, 2)) : null);
}

// Images are in the page itself, each once, or in the folder next to it.
function imageSource(name) {
  if (core.files !== null) return `${core.files}/${name}.jpg`;
  const holder = document.getElementById(`image-${name}`);
  return holder ? holder.textContent : "";
}

// The curves, settings and grids of a trial, loaded when they are first shown.
const details = new Map();
const waiting = new Map();

function receiveTrial(index, detail) {
  details.set(index, detail);
  for (const done of waiting.get(index) || []) done(detail);
  waiting.delete(index);
}

function withDetail(trial, done) {
  if (details.has(trial.index)) return done(details.get(trial.index));
  const holder = document.getElementById(`trial-${trial.index}`);
  if (holder) {
    receiveTrial(trial.index, JSON.parse(holder.textContent));
    return done(details.get(trial.index));
  }
  const list = waiting.get(trial.index);
  if (list) return list.push(done);
  waiting.set(trial.index, [done]);
  const missing = () => receiveTrial(trial.index, { ...core.empty, problems: [`${core.files}/ is not in the folder of this page`] });
  document.head.append(make("script", { src: `${core.files}/trial-${trial.index}.js`, onerror: missing }));
}

function whenAll(trials, done) {
  const found = new Map();
  for (const trial of trials) {
    withDetail(trial, (detail) => {
      found.set(trial.key, detail);
      if (found.size === trials.length) done(trials.map((one) => found.get(one.key)));
    });
  }
}

function setUpTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch (error) {
    if (!(error instanceof DOMException)) throw error; // a browser may deny storage to pages on a disk
  }
  const button = document.getElementById("theme");
  const apply = () => {
    root.dataset.theme = chosen || (system.matches ? "dark" : "light");
    button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    dispatchEvent(new Event("theme"));
    button.setAttribute("aria-label", `Show in ${button.textContent.toLowerCase()} colours`);
  };
  system.addEventListener("change", apply);
  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", chosen);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
    apply();
  });
  apply();
}
