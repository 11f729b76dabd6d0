// Two to six trials side by side: the same step, the same z, the same axes.

const COMPARED = [
  { name: "loss_d", title: "Loss of the discriminator" },
  { name: "loss_g", title: "Loss of the generator" },
  { name: "d_real", title: "D(x)", unit: "mean probability for real images", domain: [0, 1] },
  { name: "d_fake", title: "D(G(z))", unit: "mean probability for samples", domain: [0, 1] },
  { name: "sample_distance", title: "Distance between the samples" },
  { name: "images_per_s", title: "Throughput", unit: "images per second" },
];

function differences(trials, all) {
  const keys = [];
  const texts = all.map((detail) => new Map(detail.settings.map(([key, value]) => [key, value])));
  for (const text of texts) for (const key of text.keys()) if (!keys.includes(key)) keys.push(key);
  const rows = keys.filter((key) => !["name", "run_dir"].includes(key) && new Set(texts.map((text) => text.get(key))).size > 1);
  if (!rows.length) return make("p", { class: "quiet" }, "Their settings are the same.");
  const head = make("tr", {}, make("th", { scope: "col", class: "left" }, "setting"), trials.map((trial) => make("th", { scope: "col", class: "left" }, trialName(trial, 24))));
  return make("div", { class: "wide long", tabindex: 0, role: "region", "aria-label": "Settings that differ" }, make("table", {}, make("thead", {}, head),
    make("tbody", {}, rows.map((key) => make("tr", {}, make("td", { class: "left" }, key), texts.map((text) => make("td", { class: "text" }, short(text.get(key) ?? "–", 80))))))));
}

function drawCompare() {
  const trials = board.picked.map((key) => byKey.get(key));
  if (trials.length < 2) {
    show("compare-view", make("p", { class: "note" }, "Tick two to six trials in the table above, under “compare”."));
    return;
  }
  whenAll(trials, (all) => {
    if (trials.map((trial) => trial.key).join("\n") !== board.picked.join("\n")) return;
    const marks = [];
    const columns = trials.map((trial, place) => {
      const shown = make("div");
      const close = make("button", { type: "button", class: "plain", "aria-label": `Take ${trialName(trial)} out`, onclick: () => pickTrial(trial.key, false) }, "×");
      const swatch = draw("svg", { width: 22, height: 10, "aria-hidden": "true", class: `c${place}` }, draw("line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: "currentColor", "stroke-width": 3, "stroke-dasharray": DASHES[place] }));
      const facts = make("ul", { class: "facts" }, core.boardParameters.map((name) => fact(core.parameterLabels[name], name in trial.parameters ? number(trial.parameters[name]) : null)),
        core.boardScores.map((name) => fact(core.scoreLabels[name], trial.scores[name] ? number(trial.scores[name].value) : null)));
      const said = make("small", { class: "said" });
      marks.push((step) => {
        const grid = all[place].grids.length ? gridAt(all[place].grids, step) : null;
        said.textContent = grid && grid.step !== step ? `newest grid: step ${number(grid.step)}` : "";
        shown.replaceChildren(gridPicture(grid, `Samples of ${trialName(trial)} at step ${number(grid ? grid.step : 0)}`));
      });
      return make("figure", {}, make("figcaption", {}, make("div", { class: "title" }, swatch, make("button", { type: "button", class: "name-link", onclick: () => openTrial(trial.key) }, trialName(trial, 24)), close), verdictMark(trial.verdict), said), shown, facts);
    });
    const charts = COMPARED.map(({ name, title, unit, domain }) => lineChart({
      title, unit, domain, marks,
      series: trials.map((trial, place) => ({ trial, place, curve: all[place].curves[name] })).filter((one) => one.curve)
        .map((one) => ({ name: trialName(one.trial, 24), steps: one.curve[0], values: one.curve[1], style: one.place })),
    })).filter(Boolean);
    const steps = [...new Set(all.flatMap((detail) => detail.grids.map((grid) => grid.step)))].sort((a, b) => a - b);
    const slider = steps.length ? stepSlider(steps, "Step of all samples", (step) => marks.forEach((mark) => mark(step))) : null;
    const same = new Set(trials.map((trial) => trial.z)).size === 1;
    const side = make("div", { class: "side" }, columns);
    side.style.setProperty("--columns", Math.min(trials.length, 3));
    show("compare-view",
      make("p", { class: "quiet" }, same ? "Each cell of a grid shows the same z in all of them." : "Their z differ, because their seed, z_dim or z_distribution differs: compare the grids as a whole, not cell by cell."),
      side, slider, charts.length ? make("h3", {}, "Curves, on the same axes") : null, make("div", { class: "charts" }, charts), make("h3", {}, "Settings that differ"), differences(trials, all));
  });
}
