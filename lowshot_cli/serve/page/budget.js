/** The forgetting budget: a slider, and the curve of what it buys and costs. */

import { figure, nearest } from "./curve.js";
import { $, short, show } from "./dom.js";
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

  const unit = (x) => (state().model.adopted ? "%" : x === 1 ? "point" : "points");

  async function refresh() {
    const { model } = state();
    const mine = ++turn;
    const can = model.n_novel > 0 && model.expected_forgetting !== null;
    $("#budget-set").hidden = !can;
    $("#budget-text").textContent = explained(model);
    $("#budget label").textContent = model.adopted
      ? "Decisions that novel classes may change" : "Base accuracy that novel classes may cost";
    if (!can) return;
    let found;
    try {
      found = await askJson("tradeoff");
    } catch (refused) {
      return show(error, refused);
    }
    if (mine !== turn) return;
    curve = found;
    // The present budget may be larger than those of the curve.
    slider.max = Math.max(10, model.max_forgetting ?? 0, ...curve.map((one) => one.max_forgetting));
    slider.value = model.max_forgetting ?? 0;
    renew();
  }

  function renew() {
    const value = Number(slider.value);
    const budget = state().model.max_forgetting;
    const none = budget === null && value === 0;
    output.textContent = none ? "no budget set" : `${short(value)} ${unit(value)}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    const chosen = value === budget || none ? null : nearest(curve, value);
    $("#curve").replaceChildren(...figure(curve, state().model, chosen));
  }

  async function set() {
    show(error);
    try {
      await askJson("model", sending("PATCH", { max_forgetting: Number(slider.value) }));
    } catch (refused) {
      slider.value = state().model.max_forgetting ?? 0;
      renew();
      return show(error, refused);
    }
    await changed(`Set the budget to ${output.textContent}.`);
  }

  slider.addEventListener("input", renew);
  slider.addEventListener("change", () => {
    clearTimeout(timer); // keys change it step by step
    timer = setTimeout(set, SETTLE_MS);
  });
  return refresh;
}

function explained(model) {
  if (!model.n_novel) return "Once a class is taught, this shows what it costs the base classes.";
  if (model.expected_forgetting === null) {
    return "This model has no images on which the cost could be estimated.";
  }
  return model.adopted
    ? `The more decisions on the ${model.n_background} background photos novel classes may ` +
      "change, the more photos of their own they get."
    : "The more base accuracy novel classes may cost, the more photos of their own they get.";
}
