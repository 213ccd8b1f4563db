/** The curve of what a forgetting budget buys and costs. */

import { draw, h, short } from "./dom.js";

// Size of the drawing, and the margins around its axes.
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [420, 240, 48, 16, 14, 44];

/** The point of a curve whose budget is nearest to another, or null. */
export function nearest(curve, budget) {
  const off = (one) => Math.abs(one.max_forgetting - budget);
  return curve.reduce((best, one) => (best && off(best) <= off(one) ? best : one), null);
}

/** A budget with its unit. */
export function inUnits(budget, model) {
  const unit = model.adopted ? "%" : budget === 1 ? "point" : "points";
  return `${short(budget)} ${unit}`;
}

/** A drawing and a caption that says its points in words.
 *
 * `curve` is what the server answers about the trade-off, and `chosen` a point of it that is not
 * the present one, or null.
 */
export function figure(curve, model, chosen) {
  const judged = curve.filter(isJudged);
  if (!judged.length) {
    const text = "The curve needs a class with at least three photos.";
    return [h("figcaption", { textContent: text })];
  }
  const budget = model.max_forgetting;
  const now = budget === null ? null : nearest(judged, budget);
  const other = chosen && isJudged(chosen) ? chosen : null;
  const words = [now ? `Now: ${inWords(now, model)}` : "No budget is set."];
  if (other) words.push(`With ${inUnits(other.max_forgetting, model)}: ${inWords(other, model)}`);
  const text = words.join(" ");
  const how = "Each photo is tested against a class learnt from its other photos.";
  return [
    drawing(judged, now, other, model, `Photos recognised against expected cost. ${text}`),
    h("figcaption", { textContent: `${text} ${how}` }),
  ];
}

const isJudged = (one) => one.supports_known !== null && one.expected_forgetting !== null;

function inWords(one, model) {
  const known = Math.round(one.supports_known);
  const unit = model.adopted ? "\u00a0% of decisions" : " points of base accuracy";
  const cost = `${one.expected_forgetting.toFixed(1)}${unit}`;
  return `${known}\u00a0% of the photos are recognised, at a cost of ${cost}.`;
}

function drawing(judged, now, other, model, text) {
  const most = Math.max(1, ...judged.map((one) => one.expected_forgetting));
  const x = (cost) => LEFT + (WIDTH - LEFT - RIGHT) * Math.max(0, cost) / most;
  const y = (known) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * known / 100;
  const at = (one) => [x(one.expected_forgetting), y(one.supports_known)];
  const mark = (name, r, one) => {
    if (!one) return [];
    const [cx, cy] = at(one);
    return [draw("circle", { class: name, r, cx, cy })];
  };
  const middle = (TOP + HEIGHT - BOTTOM) / 2;
  return draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": text },
    ...axes(most, x, y),
    label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6,
      model.adopted ? "decisions changed, %" : "expected cost, points of base accuracy"),
    label(12, middle, "photos recognised, %", { transform: `rotate(-90 12 ${middle})` }),
    draw("polyline", { class: "line", points: judged.map(at).join(" ") }),
    ...mark("now", 6, now),
    ...mark("maybe", 5, other));
}

function axes(most, x, y) {
  const parts = [];
  for (const known of [0, 25, 50, 75, 100]) {
    const at = y(known);
    parts.push(draw("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }));
    parts.push(label(LEFT - 6, at + 4, String(known), { "text-anchor": "end" }));
  }
  const step = most > 5 ? 2 : most > 2 ? 1 : 0.5;
  for (let cost = 0; cost <= most + 1e-9; cost += step) {
    parts.push(label(x(cost), HEIGHT - BOTTOM + 18, short(cost)));
  }
  return parts;
}

function label(x, y, text, more = {}) {
  return draw("text", { x, y, "text-anchor": "middle", ...more }, text);
}
