/** The forgetting budget: a slider, and the curve of what it buys and costs. */

import { figure, inUnits, nearest } from "./curve.js";
import { $, show } from "./dom.js";
import { askJson, sending } from "./server.js";

const SETTLE_MS = 400;

/** Wire the section; `state()` has the model, `changed` is called after a change.
 *
 * Returns a function that shows the budget and the curve anew.
 */
export function budgeting(state, changed) {
  const [slider, output] = [$("#points"), $("#budget-set output")];
  const error = $("#budget-error");
  let curve = [];
  let timer = 0;
  let turn = 0;
  let wanted = null; // the budget that is chosen, until it is set or refused
  let last = Promise.resolve(); // the change that was begun last

  async function refresh() {
    const { model } = state();
    const mine = ++turn;
    const can = model.n_novel > 0 && model.expected_forgetting !== null;
    $("#budget-set").hidden = !can;
    $("#budget-text").textContent = explained(model);
    $("#budget label").textContent = model.adopted
      ? "Most decisions that new classes may change"
      : "Most base accuracy that new classes may cost";
    if (!can) return;
    let found;
    try {
      found = await askJson("tradeoff");
    } catch (refused) {
      return show(error, refused);
    }
    if (mine !== turn) return;
    curve = found;
    show(error);
    // The present budget may be larger than those of the curve.
    slider.max = Math.max(10, model.max_forgetting ?? 0, ...curve.map((one) => one.max_forgetting));
    renew();
  }

  /** Show the budget that is chosen, or else the one in use. */
  function renew() {
    const value = wanted ?? state().model.max_forgetting;
    slider.value = value ?? 0;
    draw(value);
  }

  function draw(value) {
    const { model } = state();
    output.textContent = value === null ? "no budget set" : inUnits(value, model);
    slider.setAttribute("aria-valuetext", output.textContent);
    const other = value === model.max_forgetting ? null : nearest(curve, value);
    $("#curve").replaceChildren(...figure(curve, model, other));
  }

  async function set(value) {
    if (value !== wanted) return; // another is chosen meanwhile
    show(error);
    try {
      if (value !== state().model.max_forgetting) {
        await askJson("model", sending("PATCH", { max_forgetting: value }));
        await changed(`Set the budget to ${inUnits(value, state().model)}.`);
      }
    } catch (refused) {
      show(error, refused);
    }
    if (value === wanted) wanted = null;
    renew();
  }

  slider.addEventListener("input", () => draw(Number(slider.value)));
  slider.addEventListener("change", () => {
    const value = wanted = Number(slider.value);
    clearTimeout(timer); // keys change it step by step
    timer = setTimeout(() => { last = last.then(() => set(value)); }, SETTLE_MS);
  });
  return refresh;
}

function explained(model) {
  if (!model.n_novel) return "Once a class is taught, this shows what it costs the base classes.";
  if (model.expected_forgetting === null) {
    return "This model has no images on which the cost could be estimated.";
  }
  const most = model.adopted
    ? `decisions on the ${model.n_background} background photos you let change`
    : "base accuracy you are ready to lose";
  return `The more ${most}, the more photos of the new classes are recognised.`;
}
