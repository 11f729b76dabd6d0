// The table of all trials: sorted, filtered, a hundred rows at a time.

const board = { sort: null, down: true, verdict: null, status: "", text: "", rows: 100, picked: [] };
const MOST_PICKED = 6;

function boardColumns() {
  const columns = [
    { id: "name", label: "trial", left: true, value: (trial) => trial.label },
    { id: "verdict", label: "stability", left: true, value: (trial) => trial.verdict },
  ];
  for (const name of core.boardParameters) {
    columns.push({ id: `p:${name}`, label: core.parameterLabels[name], value: (trial) => trial.parameters[name] ?? null });
  }
  for (const name of core.boardScores) {
    columns.push({ id: `s:${name}`, label: core.scoreLabels[name], score: name, value: (trial) => scoreOf(trial, name), up: core.lower.includes(name) });
  }
  columns.push({ id: "step", label: "steps", value: (trial) => trial.step });
  return columns;
}

function compareValues(a, b, down) {
  const [emptyA, emptyB] = [a === null || a === undefined, b === null || b === undefined];
  if (emptyA || emptyB) return emptyA - emptyB; // missing values come last in both orders
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}

function boardTrials() {
  const words = board.text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = core.trials.filter((trial) => {
    if (board.verdict && trial.verdict !== board.verdict) return false;
    if (board.status && trial.status !== board.status) return false;
    if (!words.length) return true;
    const values = Object.entries(trial.parameters).map(([name, value]) => `${name}=${value}`);
    const text = [trial.label, trial.sweep, trial.status, plain(trial.verdict), trial.reason, ...values].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const column = boardColumns().find((one) => one.id === board.sort);
  if (!column) return found;
  return found.map((trial, place) => ({ trial, place, value: column.value(trial) }))
    .sort((a, b) => compareValues(a.value, b.value, board.down) || a.place - b.place)
    .map((one) => one.trial);
}

function scoreCell(trial, name) {
  const score = trial.scores[name];
  if (!score) return "–";
  const interval = finite(score.low) && finite(score.high) ? make("small", {}, `${number(score.low)} to ${number(score.high)}`) : null;
  return [number(score.value), interval];
}

function stepCell(trial) {
  const of = trial.steps && trial.steps !== trial.step ? ` of ${number(trial.steps)}` : "";
  const wrong = trial.problems ? `, ${trial.problems} file problem${trial.problems > 1 ? "s" : ""}` : "";
  return make("td", { "data-label": "steps", title: short(trial.reason, 300) || null }, make("span", {}, `${number(trial.step)}${of}`), make("small", {}, `${short(trial.status, 24)}${wrong}`));
}

function boardRow(trial, columns) {
  const pick = make("input", {
    type: "checkbox", "aria-label": `Compare ${trialName(trial)}`, "data-key": trial.key, checked: board.picked.includes(trial.key),
    onchange: (event) => pickTrial(trial.key, event.target.checked),
  });
  const image = trial.thumbnail
    ? make("img", { src: imageSource(trial.thumbnail), loading: "lazy", width: 72, height: 72, alt: `Samples of ${trialName(trial)} at step ${number(trial.thumbnailStep)}` })
    : make("span", { class: "none" }, "no samples");
  const cells = columns.map((column) => {
    if (column.id === "name") {
      const where = trial.sweep && !trial.label.startsWith(trial.sweep) ? make("small", {}, short(trial.sweep)) : null;
      const best = core.best === trial.key ? make("span", { class: "best" }, "best") : null;
      const name = make("button", { class: "name", type: "button", "data-key": trial.key, title: short(trial.label, 200), onclick: () => openTrial(trial.key) }, make("span", { class: "clip" }, trialName(trial, 80)));
      return make("td", { class: "left what" }, name, best, where);
    }
    if (column.id === "verdict") return make("td", { class: "left judged" }, verdictMark(trial.verdict, core.stability && scoreOf(trial, core.stability)));
    if (column.score) return make("td", { "data-label": column.label }, make("span", {}, scoreCell(trial, column.score)));
    const value = column.value(trial);
    if (column.id === "step") return stepCell(trial);
    return make("td", { "data-label": column.label }, make("span", { class: "value", title: typeof value === "string" ? short(value, 300) : null }, number(value)));
  });
  return make("tr", { "data-key": trial.key, class: trial.key === shownTrial ? "shown" : null },
    make("td", { class: "pick" }, pick), make("td", { class: "thumb" }, image), cells);
}

function drawBoard() {
  const columns = boardColumns();
  const trials = boardTrials();
  const heads = columns.map((column) => {
    const sorted = board.sort === column.id;
    const sort = () => {
      // The first click sorts the best first: descending, except for scores where lower is better.
      board.down = sorted ? !board.down : Boolean(column.score) && !column.up;
      board.sort = column.id;
      drawBoard();
      document.querySelector(`#board th[data-id="${CSS.escape(column.id)}"] button`).focus();
    };
    return make("th", { scope: "col", class: column.left ? "left" : null, "data-id": column.id, "aria-sort": sorted ? (board.down ? "descending" : "ascending") : "none" },
      make("button", { type: "button", onclick: sort, title: column.score || null }, short(column.label, 30)));
  });
  const body = make("tbody", {}, trials.slice(0, board.rows).map((trial) => boardRow(trial, columns)));
  body.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by || !event.target.matches(".name")) return;
    const names = [...body.querySelectorAll(".name")];
    const next = names[names.indexOf(event.target) + by];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  });
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col", class: "left" }, make("span", { class: "away" }, "compare")), make("th", { scope: "col", class: "left" }, "samples"), heads)), body);
  const left = trials.length - board.rows;
  const more = left > 0
    ? make("div", { class: "more" }, make("button", { type: "button", onclick: () => { board.rows += 100; drawBoard(); } }, `Show ${Math.min(100, left)} more of ${number(left)}`))
    : null;
  show("board", trials.length ? table : make("p", { class: "more" }, "No trial fits."), more);
  const all = `${number(core.trials.length)} ${core.trials.length === 1 ? "trial" : "trials"}`;
  document.getElementById("shown-count").textContent = trials.length === core.trials.length ? all : `${number(trials.length)} of ${all}`;
}

function pickTrial(key, on) {
  board.picked = board.picked.filter((other) => other !== key);
  if (on) board.picked.push(key);
  if (board.picked.length > MOST_PICKED) board.picked.shift();
  showPicked();
  drawCompare();
}

function showPicked() {
  for (const box of document.querySelectorAll("#board input[data-key]")) box.checked = board.picked.includes(box.dataset.key);
  document.getElementById("go-compare").textContent = `Compare ${board.picked.length || ""}`.trim();
  document.getElementById("go-compare").disabled = board.picked.length < 2;
}

function setUpBoard() {
  const again = () => {
    board.rows = 100;
    drawBoard();
  };
  const chips = document.getElementById("verdicts");
  const counts = new Map();
  for (const trial of core.trials) counts.set(trial.verdict, (counts.get(trial.verdict) || 0) + 1);
  for (const name of [...Object.keys(SYMBOLS), ...counts.keys()]) {
    if (!counts.has(name) || chips.querySelector(`[data-verdict="${CSS.escape(name)}"]`)) continue;
    const press = (event) => {
      board.verdict = board.verdict === name ? null : name;
      for (const chip of chips.children) chip.setAttribute("aria-pressed", String(chip.dataset.verdict === board.verdict));
      again();
    };
    chips.append(make("button", { type: "button", "aria-pressed": "false", "data-verdict": name, onclick: press }, verdictMark(name), make("span", { class: "count" }, number(counts.get(name)))));
  }
  const status = document.getElementById("status");
  for (const name of [...new Set(core.trials.map((trial) => trial.status))].sort()) status.append(make("option", { value: name }, short(name, 24)));
  status.addEventListener("change", () => { board.status = status.value; again(); });
  const text = document.getElementById("text");
  text.addEventListener("input", () => { board.text = text.value; again(); });
  const order = document.getElementById("order");
  for (const column of boardColumns()) order.append(make("option", { value: column.id }, short(column.label, 30)));
  order.addEventListener("change", () => {
    const column = boardColumns().find((one) => one.id === order.value);
    board.sort = column.id;
    board.down = Boolean(column.score) && !column.up;
    again();
  });
  document.getElementById("go-compare").addEventListener("click", () => {
    document.getElementById("compare").scrollIntoView();
    document.querySelector("#compare h2").focus({ preventScroll: true });
  });
  board.sort = core.mainScore ? `s:${core.mainScore}` : "name";
  board.down = Boolean(core.mainScore) && !core.lower.includes(core.mainScore);
  order.value = board.sort;
  board.picked = core.picked.slice();
  drawBoard();
  showPicked();
}
