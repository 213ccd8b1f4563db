/** Photos to try: what the model says about each, now and before the last change. */

import { $, count, h, say, show } from "./dom.js";
import { awayButton, focusBeside, photoSource, preview } from "./photos.js";
import { askJson, sendingFiles } from "./server.js";

const TOP = 3;

/** Wire the section; `state()` has the model and its classes.
 *
 * Returns `take`, for pasted files, and `askAgain`, for when the model has changed.
 */
export function trying(state) {
  let tried = [];
  const alarms = $("#alarms");

  const take = photoSource($("#try .source"), "to try", {
    limits: () => state().model.limits,
    room: () => state().model.limits.images - tried.length,
    async give(photos) {
      photos.forEach(add);
      tried.push(...photos);
      $("#clear").hidden = false;
      await Promise.all(photos.map(classify));
      say(`Classified ${count(photos.length, "photo")}.`);
    },
  });

  function add(photo) {
    photo.answers = h("div", { className: "answers" });
    const title = h("p", { className: "title", textContent: photo.name });
    photo.tile = h("li", {}, preview(photo), title, photo.answers, awayButton(photo, remove));
    $("#tried").append(photo.tile);
  }

  function remove(photo) {
    const focus = focusBeside(photo, $("#try input[type=file]"));
    tried = tried.filter((one) => one !== photo);
    photo.tile.remove();
    $("#clear").hidden = !tried.length;
    focus();
  }

  /** Ask about one photo, so that one that cannot be read spoils no other answer. */
  async function classify(photo) {
    const turn = photo.turn = (photo.turn ?? 0) + 1;
    photo.tile.setAttribute("aria-busy", "true");
    const { model } = state();
    let found;
    try {
      const asked = [answer(photo, false), ...(model.can_undo ? [answer(photo, true)] : [])];
      found = (await Promise.all(asked)).map((one, i) => said(one, i ? "Before" : "Now"));
    } catch (refused) {
      found = [h("p", { className: "error", textContent: refused.message })];
    }
    if (turn !== photo.turn) return; // the model has changed since, and it was asked again
    photo.tile.setAttribute("aria-busy", "false");
    photo.answers.replaceChildren(...found.reverse());
  }

  async function answer(photo, before) {
    const query = new URLSearchParams({ top: TOP, before });
    if (alarms.value) query.set("false_alarm", alarms.value);
    const [found] = await askJson(`predict?${query}`, sendingFiles([photo]));
    return found;
  }

  function said(found, when) {
    const novel = state().classes.filter((one) => one.kind === "novel").map((one) => one.class);
    const guesses = found.top.map(([name, share]) => {
      const bar = h("i", { "aria-hidden": "true" });
      bar.style.setProperty("--share", share);
      return h("li", { className: novel.includes(name) ? "guess novel" : "guess" },
        h("span", {}, name), h("span", {}, `${(100 * share).toFixed(1)} %`), bar);
    });
    const unknown = found.unknown ? h("p", { className: "unknown", textContent: "unknown" }) : null;
    return h("div", { className: when.toLowerCase() },
      h("h3", { textContent: when }), unknown, h("ol", {}, ...guesses));
  }

  async function askAgain() {
    await Promise.all(tried.map(classify));
  }

  alarms.addEventListener("change", askAgain);
  $("#clear").addEventListener("click", () => {
    tried = [];
    $("#tried").replaceChildren();
    $("#clear").hidden = true;
    $("#try input[type=file]").focus();
  });

  /** Without base images nothing tells how unlike them is too unlike. */
  function refresh() {
    const { adopted, expected_forgetting: spent } = state().model;
    const cannot = spent === null;
    alarms.disabled = cannot;
    if (cannot) alarms.value = "";
    $("#alarms-text").textContent = cannot
      ? `This model has no ${adopted ? "background photos" : "hold-out images"} to tell by.`
      : "A false alarm is a photo of a known class that is marked as unknown.";
  }
  return { take, askAgain, refresh };
}
