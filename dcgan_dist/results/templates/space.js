// The search space: pairs of settings, all settings at once, their importance, and the trade-offs.

const PLENTY = 2000; // points in a chart

function spread(trials, name) {
  const values = trials.map((trial) => trial.parameters[name]).filter(finite);
  return { values, log: core.logarithmic.includes(name) && values.every((value) => value > 0) };
}

function shadeOf(trials, score) {
  const values = trials.map((trial) => scoreOf(trial, score)).filter(finite);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const turned = core.lower.includes(score);
  return {
    low, high, turned,
    of: (value) => {
      if (!finite(value)) return "var(--tint)";
      const share = high > low ? (value - low) / (high - low) : 0.5;
      return shade(turned ? 1 - share : share);
    },
  };
}

// A map of two settings: squares are means of the trials in them, marks are the trials.
function pairMap(trials, [nameX, nameY], score, colours, tell) {
  const some = trials.filter((trial) => finite(trial.parameters[nameX]) && finite(trial.parameters[nameY]));
  const [spreadX, spreadY] = [spread(some, nameX), spread(some, nameY)];
  if (some.length < 3 || new Set(spreadX.values).size < 2 || new Set(spreadY.values).size < 2) return null;
  const label = (name) => core.parameterLabels[name] || name;
  const holder = make("div", { class: "plot" });
  resizing(holder, (width) => {
    const [height, left, bottom, top, bins] = [300, 58, 38, 8, 6];
    const x = scale(...bounds(spreadX.values, spreadX.log), left, width - 6, spreadX.log);
    const y = scale(...bounds(spreadY.values, spreadY.log), height - bottom, top, spreadY.log);
    const svg = draw("svg", {
      viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0,
      "aria-label": `${some.length} trials by ${label(nameX)} and ${label(nameY)}, coloured by ${core.scoreLabels[score]}. Arrow keys walk through them, enter opens one.`,
    });
    const cells = new Map();
    for (const trial of some) {
      const value = scoreOf(trial, score);
      if (!finite(value)) continue;
      const column = Math.min(bins - 1, Math.floor(((x(trial.parameters[nameX]) - left) / (width - 6 - left)) * bins));
      const row = Math.min(bins - 1, Math.floor(((y(trial.parameters[nameY]) - top) / (height - bottom - top)) * bins));
      const cell = cells.get(`${column} ${row}`) || { column, row, sum: 0, count: 0 };
      cells.set(`${column} ${row}`, { ...cell, sum: cell.sum + value, count: cell.count + 1 });
    }
    const [wide, high] = [(width - 6 - left) / bins, (height - bottom - top) / bins];
    for (const { column, row, sum, count } of cells.values()) {
      svg.append(draw("rect", { x: left + column * wide + 1, y: top + row * high + 1, width: wide - 2, height: high - 2, rx: 4, fill: colours.of(sum / count), "fill-opacity": 0.4 }));
    }
    axes(svg, { x, y, xLabel: `${label(nameX)}${spreadX.log ? " (log)" : ""}`, yLabel: `${label(nameY)}${spreadY.log ? " (log)" : ""}`, width, height, left, bottom,
      xTicks: ticks(x.low, x.high, 4, spreadX.log), yTicks: ticks(y.low, y.high, 5, spreadY.log) });
    const items = some.slice(0, PLENTY).map((trial) => ({ trial, x: x(trial.parameters[nameX]), y: y(trial.parameters[nameY]) }));
    for (const item of items) svg.append(placeSymbol(item.trial, item.x, item.y, 5.5, colours.of(scoreOf(item.trial, score))));
    walkable(svg, items, (trial) => tell(describe(trial, [nameX, nameY], score)));
    holder.replaceChildren(svg);
  });
  return make("figure", { class: "chart" }, make("figcaption", {}, `${label(nameX)} and ${label(nameY)}`), holder);
}

function colourKey(score, colours) {
  const bar = draw("svg", { width: 160, height: 12, "aria-hidden": "true" });
  for (let place = 0; place < 32; place += 1) bar.append(draw("rect", { x: place * 5, y: 0, width: 5.5, height: 12, fill: shade(colours.turned ? 1 - place / 31 : place / 31) }));
  const verdicts = Object.keys(SYMBOLS).filter((name) => core.trials.some((trial) => trial.verdict === name));
  return make("p", { class: "legend" }, make("span", {}, core.scoreLabels[score], make("b", {}, number(colours.low)), bar, make("b", {}, number(colours.high))), verdicts.map((name) => {
    const shape = symbol(name, 5);
    fill(shape, shape.getAttribute("fill") === "none" ? { stroke: "currentColor" } : { fill: "none", stroke: "currentColor", "stroke-width": 1.5 }, []);
    return make("span", {}, draw("svg", { width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, shape), plain(name));
  }), make("span", {}, "squares: mean of the trials in them"));
}

function parallel(trials, names, score, colours, tell) {
  if (names.length < 2) return null;
  const holder = make("div", { class: "plot" });
  const scroller = make("div", { class: "scroller" }, holder);
  const all = [...names, null]; // null: the score
  resizing(scroller, (outer) => {
    const width = Math.max(outer, all.length * 84);
    const [height, top, bottom, side] = [340, 42, 26, 44];
    const valueOf = (trial, name) => (name === null ? scoreOf(trial, score) : trial.parameters[name] ?? null);
    const scales = all.map((name) => {
      const values = trials.map((trial) => valueOf(trial, name)).filter((value) => value !== null);
      if (values.length && values.every(finite)) {
        const log = name !== null && spread(trials, name).log;
        const [low, high] = bounds(values, log, 0);
        const place = scale(low, high, height - bottom, top, log);
        return { place: (value) => (finite(value) ? place(value) : null), ends: [[low, number(low, 2)], [high, number(high, 2)]], at: place };
      }
      const kinds = [...new Set(values.map(String))].sort().slice(0, 12);
      const place = scale(0, Math.max(1, kinds.length - 1), height - bottom, top);
      return { place: (value) => (kinds.includes(String(value)) ? place(kinds.indexOf(String(value))) : null), ends: kinds.map((kind, at) => [at, short(kind, 12)]), at: place };
    });
    const x = (place) => side + (place * (width - 2 * side)) / (all.length - 1);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0,
      "aria-label": `Each line is a trial, through its ${names.map(lastPart).join(", ")} and ${core.scoreLabels[score]}. Arrow keys walk through them, enter opens one.` });
    const items = [];
    const order = trials.filter((trial) => finite(scoreOf(trial, score)));
    order.sort((a, b) => compareValues(scoreOf(a, score), scoreOf(b, score), core.lower.includes(score)));
    const lines = new Map();
    for (const trial of order.slice(-PLENTY)) {
      const places = all.map((name, at) => [x(at), scales[at].place(valueOf(trial, name))]).filter(([, y]) => y !== null);
      if (places.length < 2) continue;
      const line = draw("path", { d: `M${places.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L")}`, class: "line", stroke: colours.of(scoreOf(trial, score)), "stroke-opacity": 0.85, "stroke-dasharray": trial.verdict === "stable" ? null : "5 3" });
      lines.set(trial.key, line);
      svg.append(line);
      const [lastX, lastY] = places[places.length - 1];
      items.unshift({ trial, x: lastX, y: lastY });
    }
    all.forEach((name, at) => {
      svg.append(draw("line", { class: "axis strong", x1: x(at), x2: x(at), y1: top, y2: height - bottom, stroke: "var(--firm)" }));
      svg.append(draw("text", { x: x(at), y: 14, "text-anchor": "middle", class: "strong" }, short(name === null ? core.scoreLabels[score] : core.parameterLabels[name] || name, 14)));
      for (const [value, text] of scales[at].ends) svg.append(draw("text", { x: x(at) + 5, y: scales[at].at(value) + (scales[at].at(value) > height / 2 ? 14 : -4) }, text));
    });
    let strong = null;
    walkable(svg, items, (trial) => {
      if (strong) strong.classList.remove("picked");
      strong = lines.get(trial.key);
      strong.classList.add("picked");
      tell(describe(trial, names, score));
    });
    holder.replaceChildren(svg);
  });
  return make("figure", { class: "chart" }, make("figcaption", {}, "All settings at once ", make("small", {}, "a line is a trial; dashed: not stable")), scroller);
}

function importanceChart(sweep) {
  const rows = sweep.importance;
  if (!rows.length) return null;
  const holder = make("div", { class: "plot" });
  resizing(holder, (width) => {
    const [pitch, left, bottom] = [34, Math.min(150, width * 0.36), 36];
    const height = rows.length * pitch + bottom;
    const x = scale(Math.min(0, ...rows.map((row) => row.low ?? 0)), Math.max(...rows.map((row) => row.high ?? row.value), 0.1), left, width - 12);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Importance: ${rows.map((row) => `${row.label} ${number(row.value, 2)} (${number(row.low, 2)} to ${number(row.high, 2)})`).join("; ")}` });
    axes(svg, { x, y: null, xLabel: "importance", yLabel: "", width, height, left, bottom, xTicks: ticks(x.low, x.high, 3), yTicks: [] });
    rows.forEach((row, place) => {
      const middle = place * pitch + pitch / 2;
      svg.append(draw("text", { x: left - 8, y: middle + 4, "text-anchor": "end", class: "strong" }, short(row.label, 18)));
      svg.append(draw("rect", { x: Math.min(x(0), x(row.value)), y: middle - 8, width: Math.max(1, Math.abs(x(row.value) - x(0))), height: 16, rx: 3, class: "c0", fill: "currentColor", "fill-opacity": 0.75 }));
      if (finite(row.low) && finite(row.high)) svg.append(draw("path", { d: `M${x(row.low)} ${middle}H${x(row.high)}M${x(row.low)} ${middle - 5}v10M${x(row.high)} ${middle - 5}v10`, stroke: "var(--ink)", "stroke-width": 1.5, fill: "none" }));
    });
    holder.replaceChildren(svg);
  });
  return make("figure", { class: "chart" }, make("figcaption", {}, `What mattered in ${short(sweep.label, 40)} `, make("small", {}, "importance for the objective, 95% intervals")), holder);
}

// The Pareto front: trials that no other trial beats in both scores; without diverged and collapsed ones.
function frontOf(items, nameX, nameY) {
  const [signX, signY] = [nameX, nameY].map((name) => (core.lower.includes(name) ? -1 : 1));
  const sound = items.filter((item) => !["diverged", "collapse"].includes(item.trial.verdict));
  const order = sound.sort((a, b) => signX * (b.vx - a.vx) || signY * (b.vy - a.vy));
  let best = -Infinity;
  return order.filter((item) => {
    const better = signY * item.vy > best;
    if (better) best = signY * item.vy;
    return better;
  });
}

function pareto(trials, nameX, nameY, colours, score, tell) {
  const some = trials.filter((trial) => finite(scoreOf(trial, nameX)) && finite(scoreOf(trial, nameY))).slice(0, PLENTY);
  if (some.length < 3) return null;
  const holder = make("div", { class: "plot" });
  resizing(holder, (width) => {
    const [height, left, bottom, top] = [300, 58, 38, 8];
    const x = scale(...bounds(some.map((trial) => scoreOf(trial, nameX))), left, width - 6);
    const y = scale(...bounds(some.map((trial) => scoreOf(trial, nameY))), height - bottom, top);
    const items = some.map((trial) => ({ trial, vx: scoreOf(trial, nameX), vy: scoreOf(trial, nameY), x: x(scoreOf(trial, nameX)), y: y(scoreOf(trial, nameY)) }));
    const front = frontOf(items, nameX, nameY);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0,
      "aria-label": `${core.scoreLabels[nameY]} against ${core.scoreLabels[nameX]}. On the front: ${front.slice(0, 12).map((item) => trialName(item.trial, 30)).join(", ")}. Arrow keys walk through the trials, enter opens one.` });
    axes(svg, { x, y, xLabel: core.scoreLabels[nameX], yLabel: core.scoreLabels[nameY], width, height, left, bottom, xTicks: ticks(x.low, x.high, 4), yTicks: ticks(y.low, y.high, 5) });
    if (front.length) svg.append(draw("path", { d: `M${front.map((item) => `${item.x.toFixed(1)} ${item.y.toFixed(1)}`).join("L")}`, class: "line front", stroke: "var(--accent)", "stroke-width": 2 }));
    for (const item of items) svg.append(placeSymbol(item.trial, item.x, item.y, front.includes(item) ? 7 : 4.5, colours.of(scoreOf(item.trial, score))));
    walkable(svg, items, (trial) => tell(describe(trial, core.boardParameters, nameX)));
    holder.replaceChildren(svg);
  });
  return make("figure", { class: "chart" }, make("figcaption", {}, "Score and diversity ", make("small", {}, "the line joins those that no other trial beats in both")), holder);
}

function setUpSpace() {
  const section = document.getElementById("space");
  if (!section) return;
  const sweepSelect = document.getElementById("space-sweep");
  const scoreSelect = document.getElementById("space-score");
  for (const sweep of core.sweeps) sweepSelect.append(make("option", { value: sweep.key }, short(sweep.label, 50)));
  const paint = () => {
    const sweep = core.sweeps.find((one) => one.key === sweepSelect.value);
    const trials = core.trials.filter((trial) => trial.sweepKey === sweep.key);
    const scores = core.scores.filter((name) => trials.filter((trial) => finite(scoreOf(trial, name))).length > 1);
    const before = scoreSelect.value;
    scoreSelect.replaceChildren(...scores.map((name) => make("option", { value: name }, core.scoreLabels[name])));
    if (scores.includes(before)) scoreSelect.value = before;
    const score = scoreSelect.value;
    const said = make("p", { class: "said", "aria-live": "polite" }, "");
    const tell = (text) => { said.textContent = text; };
    if (!score) {
      show("space-view", make("p", { class: "note" }, "None of its trials has a score yet."), importanceChart(sweep));
      return;
    }
    const colours = shadeOf(trials, score);
    const pairs = [];
    const numeric = sweep.parameters.filter((name) => new Set(spread(trials, name).values).size > 1).slice(0, 4);
    numeric.forEach((name, place) => numeric.slice(place + 1).forEach((other) => pairs.push([name, other])));
    const diversity = core.diversity.filter((name) => name !== score && scores.includes(name))[0];
    show("space-view",
      colourKey(score, colours), said,
      make("div", { class: "charts maps" }, pairs.map((pair) => pairMap(trials, pair, score, colours, tell))),
      make("div", { class: "block" }, parallel(trials, sweep.parameters.slice(0, 10), score, colours, tell)),
      make("div", { class: "charts maps block" }, importanceChart(sweep), diversity ? pareto(trials, score, diversity, colours, score, tell) : null));
  };
  sweepSelect.addEventListener("change", paint);
  scoreSelect.addEventListener("change", paint);
  addEventListener("theme", paint);
  sweepSelect.closest("label").hidden = core.sweeps.length < 2;
  paint();
}

function setUpScaling() {
  const place = document.getElementById("scaling");
  if (!place) return;
  for (const group of core.scaling) {
    const holder = make("div", { class: "plot" });
    resizing(holder, (width) => {
      const [height, left, bottom, top] = [260, 58, 38, 8];
      const most = Math.max(...group.points.map((point) => point.workers));
      const one = group.points[0].rate / group.points[0].workers;
      const x = scale(0, most * 1.08, left, width - 6);
      const y = scale(0, Math.max(one * most, ...group.points.map((point) => point.rate)) * 1.08, height - bottom, top);
      const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Throughput: ${group.points.map((point) => `${number(point.rate)} images per second with ${point.workers} workers`).join("; ")}` });
      axes(svg, { x, y, xLabel: "workers", yLabel: "images per second", width, height, left, bottom, xTicks: ticks(0, most, 4).filter(Number.isInteger), yTicks: ticks(0, y.high, 4) });
      svg.append(draw("line", { class: "rule", x1: x(0), y1: y(0), x2: x(most), y2: y(one * most) }));
      svg.append(draw("path", { class: "line c0", stroke: "currentColor", d: `M${group.points.map((point) => `${x(point.workers)} ${y(point.rate)}`).join("L")}` }));
      for (const point of group.points) svg.append(draw("circle", { class: "c0", fill: "currentColor", cx: x(point.workers), cy: y(point.rate), r: 4.5 }));
      holder.replaceChildren(svg);
    });
    place.append(make("figure", { class: "chart" }, make("figcaption", {}, "Scaling over workers ", make("small", {}, `${short(group.label, 80)}; dotted: in proportion`)), holder));
  }
}
