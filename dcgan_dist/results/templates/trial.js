// One trial: its samples over time, curves, scores, settings, and the command that reproduces it.

let shownTrial = null;

const CURVES = [
  { title: "Losses", lines: { loss_d: "discriminator", loss_g: "generator" } },
  { title: "What the discriminator believes", unit: "mean probability of being real", lines: { d_real: "D(x), real images", d_fake: "D(G(z)), samples" }, domain: [0, 1] },
  { title: "Distance between the samples", unit: "mean over pairs, same z", lines: { sample_distance: "samples" } },
  { title: "Throughput", unit: "images per second", lines: { images_per_s: "images per second" } },
  { title: "Oscillation of filters", unit: "share of them", lines: { filter_oscillation: "filters" } },
  { title: "Learning rate", lines: { lr: "learning rate" }, unlessConstant: true },
];

function gridAt(grids, step) {
  let found = grids[0];
  for (const grid of grids) if (grid.step <= step) found = grid;
  return found;
}

function gridPicture(grid, alt) {
  if (!grid) return make("div", { class: "grid-none" }, "no samples yet");
  if (!grid.image) return make("div", { class: "grid-none" }, `step ${number(grid.step)}: ${grid.problem}`);
  return make("img", { class: "grid-image", src: imageSource(grid.image), alt });
}

function stepSlider(steps, label, tell) {
  const said = make("output", {});
  const range = make("input", { type: "range", min: 0, max: steps.length - 1, step: 1, value: steps.length - 1, "aria-label": label });
  let clock = null;
  const stop = () => {
    clearInterval(clock);
    clock = null;
    play.textContent = "Play";
  };
  const move = () => {
    const step = steps[Number(range.value)];
    said.textContent = `step ${number(step)}`;
    range.setAttribute("aria-valuetext", `step ${number(step)}`);
    tell(step);
  };
  const play = make("button", {
    type: "button",
    onclick: () => {
      if (clock !== null) return stop();
      if (Number(range.value) === steps.length - 1) range.value = 0;
      move();
      play.textContent = "Stop";
      clock = setInterval(() => {
        if (!range.isConnected || Number(range.value) >= steps.length - 1) return stop();
        range.value = Number(range.value) + 1;
        move();
      }, 700);
    },
  }, "Play");
  range.addEventListener("input", () => { stop(); move(); });
  move();
  return make("div", { class: "slider" }, steps.length > 1 ? play : null, steps.length > 1 ? range : null, said);
}

function samplesOf(trial, detail, marks) {
  if (!detail.grids.length && !detail.real) return null;
  const grids = detail.grids;
  const shown = make("div");
  const shownRaw = make("div");
  const real = detail.real ? make("figure", {}, make("figcaption", {}, "Real images ", make("small", {}, "of the training set")),
    detail.real.image ? make("img", { class: "grid-image", src: imageSource(detail.real.image), alt: "Real images of the training set" }) : make("div", { class: "grid-none" }, detail.real.problem)) : null;
  const tell = (step) => {
    const grid = gridAt(grids, step);
    shown.replaceChildren(gridPicture(grid, `Samples of ${trialName(trial)} at step ${number(step)}`));
    if (detail.raw.length) shownRaw.replaceChildren(gridPicture(gridAt(detail.raw, step), `Samples of the raw weights at step ${number(step)}`));
    for (const mark of marks) mark(step);
  };
  const slider = grids.length ? stepSlider(grids.map((grid) => grid.step), "Step of the samples", tell) : null;
  if (!grids.length) shown.append(gridPicture(null));
  const about = detail.raw.length ? "averaged weights, the same z at every step" : "the same z at every step";
  const samples = make("figure", {}, make("figcaption", {}, "Samples ", make("small", {}, about)), shown);
  const raw = detail.raw.length ? make("figure", {}, make("figcaption", {}, "Raw weights ", make("small", {}, "the same z")), shownRaw) : null;
  return [make("div", { class: raw ? "grids three" : "grids" }, samples, raw, real), slider];
}

// The figures that `explore` has drawn of it.
function figuresOf(trial, detail) {
  if (!detail.figures.length) return null;
  const drawn = detail.figures.map((figure) => make("figure", { class: "explored" },
    make("figcaption", {}, figure.title, " ", make("small", {}, `step ${number(figure.step)}`)),
    figure.image ? make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": figure.title }, make("img", { src: imageSource(figure.image), alt: `${figure.title}. ${figure.finding}`, loading: "lazy" })) : make("div", { class: "note warn" }, figure.problem),
    figure.finding ? make("p", {}, figure.finding) : null));
  return [make("h3", {}, "Figures"), drawn];
}

function scoreTable(detail) {
  if (!detail.scores.length) return null;
  const rows = detail.scores.map((score) => make("tr", { class: score.control ? "published" : null },
    make("td", { class: "left" }, plain(score.task)), make("td", { class: "left" }, plain(score.metric)),
    make("td", {}, number(score.value, 4)), make("td", {}, finite(score.low) ? `${number(score.low, 4)} to ${number(score.high, 4)}` : "–"),
    make("td", {}, number(score.n)), make("td", {}, number(score.step)),
    make("td", { class: "left" }, short(score.method)), make("td", { class: "text" }, short(score.protocol, 120))));
  const heads = ["task", "score", "value", "95% interval", "n", "step", "method", "protocol"];
  return [make("h3", {}, "Scores"), make("div", { class: "wide long", tabindex: 0, role: "region", "aria-label": "Scores of the trial" },
    make("table", {}, make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col", class: ["task", "score", "method", "protocol"].includes(head) ? "left" : null }, head)))), make("tbody", {}, rows)))];
}

function commandBox(command) {
  if (!command) return null;
  const text = make("pre", { tabindex: 0 }, make("code", {}, command));
  const button = make("button", {
    type: "button",
    onclick: () => {
      const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1600); };
      const bySelection = () => {
        getSelection().selectAllChildren(text);
        if (document.execCommand("copy")) done();
      };
      if (navigator.clipboard) navigator.clipboard.writeText(command).then(done, bySelection);
      else bySelection();
    },
  }, "Copy");
  return [make("h3", {}, "Reproduce"), make("div", { class: "command" }, text, button)];
}

function settingsTable(detail) {
  if (!detail.settings.length) return null;
  const changed = detail.settings.filter((row) => row.length > 2).length;
  const body = make("tbody");
  const paint = (all) => body.replaceChildren(...detail.settings.filter((row) => all || row.length > 2).map(([key, value, usual]) => make("tr", { class: usual === undefined ? null : "changed" },
    make("td", { class: "left" }, key), make("td", { class: "text" }, value), make("td", { class: "text" }, usual === undefined ? "" : `default ${usual}`))));
  const all = make("input", { type: "checkbox", onchange: () => paint(all.checked) });
  paint(false);
  return [make("h3", {}, "Settings"), make("p", { class: "tools" }, `${changed} of ${detail.settings.length} differ from the defaults.`, make("label", {}, all, "show all")),
    make("div", { class: "wide long settings", tabindex: 0, role: "region", "aria-label": "Settings of the trial" }, make("table", {}, body))];
}

function curveCharts(detail, marks) {
  const charts = CURVES.map(({ title, unit, lines, domain, unlessConstant }) => {
    const series = Object.entries(lines).filter(([name]) => detail.curves[name])
      .map(([name, label], style) => ({ name: label, steps: detail.curves[name][0], values: detail.curves[name][1], style }));
    if (unlessConstant && series.every((one) => new Set(one.values.filter(finite)).size < 2)) return null;
    return lineChart({ title, unit, series, domain, marks });
  }).filter(Boolean);
  return charts.length ? [make("h3", {}, "Curves"), make("div", { class: "charts" }, charts)] : null;
}

function fact(label, value) {
  return value === null || value === undefined || value === "–" ? null : make("li", {}, `${label} `, make("b", {}, value));
}

function drawTrial(trial, detail) {
  const marks = [];
  const facts = make("ul", { class: "facts" },
    fact("steps", trial.steps && trial.steps !== trial.step ? `${number(trial.step)} of ${number(trial.steps)}` : number(trial.step)),
    fact("real images seen", number(trial.images)), fact("time", hours(trial.seconds)),
    fact("images/s", number(trial.throughput)), fact("workers", trial.workers), fact("device", trial.device || null), fact("sweep", trial.sweep ? short(trial.sweep) : null),
    Object.entries(trial.parameters).slice(0, 12).map(([name, value]) => fact(short(core.parameterLabels[name] || name, 40), number(value))));
  const notes = [
    detail.reason ? make("p", { class: `note${["diverged", "failed", "died"].includes(trial.status) ? " warn" : ""}` }, `${trial.status}: ${detail.reason}`) : null,
    detail.verdictReason ? make("p", { class: "note" }, `${plain(trial.verdict)}: ${detail.verdictReason}`) : null,
    detail.parent ? make("p", { class: "note" }, detail.parent) : null,
    detail.problems.map((problem) => make("p", { class: "note warn" }, problem)),
  ];
  const charts = curveCharts(detail, marks);
  show("trial-view", make("div", { class: "head" }, make("h3", {}, make("span", { class: "clip" }, short(trial.label, 300))), verdictMark(trial.verdict), make("span", { class: "tag" }, short(trial.status, 24))),
    facts, notes, samplesOf(trial, detail, marks), charts, figuresOf(trial, detail), scoreTable(detail), settingsTable(detail), commandBox(detail.command),
    make("p", { class: "quiet" }, make("small", {}, short(detail.directory, 300))));
}

// The newest samples of the best trial, next to the summary.
function drawHero() {
  const place = document.getElementById("hero");
  const trial = byKey.get(core.hero);
  if (!place || !trial) return;
  withDetail(trial, (detail) => {
    const grid = detail.grids[detail.grids.length - 1];
    const name = make("button", { type: "button", class: "name-link", onclick: () => openTrial(trial.key) }, trialName(trial));
    place.replaceChildren(gridPicture(grid, `Samples of ${trialName(trial)}`), make("figcaption", {}, "Samples of ", name, grid ? `, step ${number(grid.step)}` : ""));
  });
}

function showTrial(key) {
  const trial = byKey.get(key);
  if (!trial) return;
  shownTrial = key;
  document.getElementById("which").value = key;
  for (const row of document.querySelectorAll("#board tr[data-key]")) row.classList.toggle("shown", row.dataset.key === key);
  withDetail(trial, (detail) => {
    if (shownTrial === key) drawTrial(trial, detail);
  });
}

function openTrial(key) {
  showTrial(key);
  history.replaceState(null, "", `#trial=${encodeURIComponent(key)}`);
  document.getElementById("trial").scrollIntoView();
  document.querySelector("#trial h2").focus({ preventScroll: true });
}

function setUpTrial() {
  const which = document.getElementById("which");
  which.append(...core.trials.slice(0, 2000).map((trial) => make("option", { value: trial.key }, trialName(trial, 60))));
  which.addEventListener("change", () => showTrial(which.value));
  const by = (offset) => () => {
    const order = boardTrials();
    const place = order.findIndex((trial) => trial.key === shownTrial);
    if (order.length) showTrial(order[(place + offset + order.length) % order.length].key);
  };
  document.getElementById("before").addEventListener("click", by(-1));
  document.getElementById("after").addEventListener("click", by(1));
  const wanted = () => {
    const match = /^#trial=(.+)$/.exec(location.hash);
    try {
      return match ? decodeURIComponent(match[1]) : null;
    } catch (error) {
      if (!(error instanceof URIError)) throw error;
      return null;
    }
  };
  addEventListener("hashchange", () => { if (byKey.has(wanted())) openTrial(wanted()); });
  if (byKey.has(wanted())) openTrial(wanted());
  else showTrial(core.best || core.trials[0].key);
}
