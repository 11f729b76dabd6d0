// Charts in SVG, drawn again when their width changes.

const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];

// Colour of a share between 0 and 1; cividis looks the same with and without colour blindness.
function shade(share) {
  const place = Math.min(1, Math.max(0, share)) * (CIVIDIS.length - 1);
  const low = Math.min(CIVIDIS.length - 2, Math.floor(place));
  const parts = (text) => [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
  const [a, b] = [parts(CIVIDIS[low]), parts(CIVIDIS[low + 1])];
  // On a dark background the dark end is made lighter, because it could not be seen.
  const light = document.documentElement.dataset.theme === "dark" ? 0.42 * (1 - place / (CIVIDIS.length - 1)) : 0;
  const mixed = a.map((value, at) => value + (b[at] - value) * (place - low));
  return `rgb(${mixed.map((value) => Math.round(value + (255 - value) * light)).join(",")})`;
}

function scale(low, high, from, to, log = false) {
  if (log) {
    const inner = scale(Math.log10(low), Math.log10(high), from, to);
    const of = (value) => inner(Math.log10(value));
    return Object.assign(of, { low, high, log, from, to, invert: (place) => 10 ** inner.invert(place) });
  }
  const span = high - low || 1;
  const of = (value) => from + ((value - low) / span) * (to - from);
  return Object.assign(of, { low, high, log, from, to, invert: (place) => low + ((place - from) / (to - from)) * span });
}

function ticks(low, high, wanted, log = false) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const digit of high / low > 30 ? [1] : [1, 2, 5]) {
        const value = Number((digit * 10 ** power).toPrecision(12));
        if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
      }
    }
    if (found.length > 1) return found.filter((_, place) => place % Math.ceil(found.length / (wanted + 1)) === 0);
    return [low, high];
  }
  const rough = (high - low) / Math.max(1, wanted) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const pitch = [1, 2, 5, 10].find((step) => step * power >= rough) * power;
  const found = [];
  for (let count = Math.ceil(low / pitch - 1e-9); count * pitch <= high + pitch * 1e-9; count += 1) found.push(Number((count * pitch).toPrecision(12)));
  return found;
}

function tickLabel(value) {
  if (Math.abs(value) >= 10000) return value.toLocaleString("en-US", { notation: "compact" });
  return number(value);
}

// Bounds of all finite values, with a margin.
function bounds(values, log = false, air = 0.06) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!finite(value) || (log && value <= 0)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === Infinity) return null;
  if (log) {
    const by = (high / low) ** air || 1;
    return low === high ? [low / 2, high * 2] : [low / by, high * by];
  }
  const by = (high - low) * air || Math.abs(low) * 0.1 || 0.5;
  return [low - by, high + by];
}

function resizing(holder, paint) {
  let width = 0;
  const observer = new ResizeObserver((entries) => {
    const now = Math.floor(entries[0].contentRect.width);
    if (now > 0 && now !== width) {
      width = now;
      paint(width);
    }
  });
  observer.observe(holder);
}

function axes(svg, { x, y, xLabel, yLabel, width, height, left, bottom, xTicks, yTicks }) {
  for (const value of yTicks) {
    svg.append(draw("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, tickLabel(value)));
  }
  for (const value of xTicks) {
    svg.append(draw("line", { class: "axis", x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4 }));
    const anchor = x(value) > width - 14 ? "end" : x(value) < left + 8 ? "start" : "middle";
    svg.append(draw("text", { x: x(value), y: height - bottom + 17, "text-anchor": anchor }, tickLabel(value)));
  }
  svg.append(draw("text", { x: (left + width) / 2, y: height - 2, "text-anchor": "middle" }, xLabel));
  if (yLabel) svg.append(draw("text", { x: -(height - bottom) / 2, y: 11, "text-anchor": "middle", transform: "rotate(-90)" }, yLabel));
}

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];

// Lines over steps. `series`: [{name, steps, values}]. Arrow keys and the pointer move a rule, at which the values are shown.
function lineChart({ title, unit = "", series, domain = null, marks = null }) {
  const drawn = series.filter((one) => one.values.some(finite));
  if (!drawn.length) return null;
  const holder = make("div", { class: "plot" });
  const legend = make("p", { class: "legend" });
  const ranges = drawn.map((one) => {
    const values = one.values.filter(finite);
    return `${one.name} from ${number(values[0])} to ${number(values[values.length - 1])}`;
  });
  const figure = make("figure", { class: "chart" }, make("figcaption", {}, title, unit ? make("small", {}, `, ${unit}`) : null), holder, legend);
  const steps = [...new Set(drawn.flatMap((one) => one.steps))].sort((a, b) => a - b);
  let at = null;
  let paintRule = () => {};

  const read = () => {
    legend.replaceChildren(
      ...drawn.map((one) => {
        const line = draw("line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: "currentColor", "stroke-width": 2.4, "stroke-dasharray": DASHES[one.style % 6] });
        const icon = draw("svg", { width: 22, height: 10, "aria-hidden": "true", class: `c${one.style % 6}` }, line);
        const value = at === null ? null : nearest(one, at);
        return make("span", {}, icon, short(one.name, 32), value === null ? null : make("b", {}, number(value)));
      }),
      at === null ? "" : make("span", {}, `step ${number(at)}`),
    );
  };
  resizing(holder, (width) => {
    const [height, left, bottom, top] = [210, 46, 34, 8];
    const [low, high] = domain || bounds(drawn.flatMap((one) => one.values));
    const last = steps[steps.length - 1];
    const x = scale(Math.min(0, steps[0]), last || 1, left, width - 6);
    const y = scale(low, high, height - bottom, top);
    const svg = draw("svg", {
      viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0,
      "aria-label": `${title} over steps 0 to ${number(last)}: ${ranges.join("; ")}. Arrow keys read the values.`,
    });
    axes(svg, { x, y, xLabel: "step", yLabel: "", width, height, left, bottom, xTicks: ticks(x.low, x.high, width / 110), yTicks: ticks(low, high, 4) });
    for (const one of drawn) {
      let path = "";
      let pen = false;
      one.values.forEach((value, place) => {
        if (!finite(value)) {
          pen = false;
          return;
        }
        path += `${pen ? "L" : "M"}${x(one.steps[place]).toFixed(1)} ${y(Math.min(high, Math.max(low, value))).toFixed(1)}`;
        if (!pen && !finite(one.values[place + 1])) path += "h.01";
        pen = true;
      });
      svg.append(draw("path", { d: path, class: `line c${one.style % 6}`, stroke: "currentColor", "stroke-linecap": "round", "stroke-dasharray": DASHES[one.style % 6] }));
    }
    const rule = draw("line", { class: "rule", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.append(rule);
    paintRule = (step) => {
      rule.setAttribute("visibility", step === null ? "hidden" : "visible");
      if (step !== null) fill(rule, { x1: x(step), x2: x(step) }, []);
    };
    const move = (step) => {
      at = step;
      paintRule(step);
      read();
    };
    svg.addEventListener("pointermove", (event) => {
      const wanted = x.invert(event.clientX - svg.getBoundingClientRect().left);
      move(steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), steps[0]));
    });
    svg.addEventListener("pointerleave", () => move(null));
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const place = at === null ? (by > 0 ? 0 : steps.length - 1) : steps.indexOf(at) + by * Math.max(1, Math.round(steps.length / 50));
      move(steps[Math.min(steps.length - 1, Math.max(0, place))]);
    });
    holder.replaceChildren(svg);
    paintRule(at);
  });
  if (marks) marks.push((step) => paintRule(step === null ? null : Math.min(step, steps[steps.length - 1])));
  read();
  return figure;
}

function nearest(one, step) {
  let best = null;
  let distance = Infinity;
  one.steps.forEach((here, place) => {
    if (Math.abs(here - step) < distance && finite(one.values[place])) [best, distance] = [one.values[place], Math.abs(here - step)];
  });
  return best;
}

// Arrow keys select an item of a chart, enter opens it; the pointer does the same.
function walkable(svg, items, tell) {
  let at = -1;
  const ring = draw("circle", { r: 9, fill: "none", stroke: "currentColor", "stroke-width": 2, visibility: "hidden", "pointer-events": "none" });
  svg.append(ring);
  const go = (place) => {
    at = place;
    const item = items[at];
    fill(ring, { cx: item.x, cy: item.y, visibility: "visible" }, []);
    tell(item.trial);
  };
  const closest = (event) => {
    const box = svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [best, distance] = [-1, 24];
    items.forEach((item, place) => {
      const away = Math.hypot(item.x - x, item.y - y);
      if (away < distance) [best, distance] = [place, away];
    });
    return best;
  };
  svg.addEventListener("pointermove", (event) => {
    const place = closest(event);
    svg.classList.toggle("hit", place >= 0);
    if (place >= 0 && place !== at) go(place);
  });
  svg.addEventListener("click", (event) => {
    if (closest(event) >= 0) openTrial(items[closest(event)].trial.key);
  });
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (by && items.length) {
      event.preventDefault();
      go(at < 0 ? 0 : (at + by + items.length) % items.length);
    } else if (event.key === "Enter" && at >= 0) openTrial(items[at].trial.key);
  });
}

function describe(trial, names, score) {
  const values = names.map((name) => `${lastPart(name)} ${number(trial.parameters[name])}`).join(", ");
  const got = scoreOf(trial, score);
  return `${trialName(trial)}: ${values}${values ? "; " : ""}${plain(core.scoreLabels[score] || score)} ${number(got)}; ${plain(trial.verdict)}`;
}

function placeSymbol(trial, x, y, radius, colour) {
  const name = SYMBOLS[trial.verdict] ? trial.verdict : "undecided";
  const shape = symbol(name, radius);
  const hollow = shape.getAttribute("fill") === "none";
  return draw("g", { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, class: "point" }, fill(shape, hollow ? { stroke: "var(--ink)" } : { fill: colour, stroke: "var(--ink)", "stroke-width": 1 }, []));
}
