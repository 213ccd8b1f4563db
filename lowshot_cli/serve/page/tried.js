/** Photos to try: what the model says about each, now and before the last change. */

import { $, count, h, queue, say } from "./dom.js";
import { awayButton, focusBeside, photoSource, preview } from "./photos.js";
import { askJson, sendingFiles } from "./server.js";

const TOP = 3;
const asking = queue(4);

/** Wire the section; `state()` has the model and its classes.
 *
 * Returns `take`, for pasted files, and `askAgain`, for when the model has changed.
 */
export function trying(state) {
  let tried = [];
  let base = new Set();
  const alarms = $("#alarms");

  const take = photoSource($("#try .source"), "to try", "for photos to try", {
    limits: () => state().model.limits,
    room: () => state().model.limits.images - tried.length,
    async give(photos) {
      photos.forEach(add);
      tried.push(...photos);
      $("#clear").hidden = false;
      const done = (await Promise.all(photos.map(classify))).filter(Boolean).length;
      if (done) say(`Classified ${count(done, "photo")}.`);
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
    photo.asked.abort();
    photo.tile.remove();
    $("#clear").hidden = !tried.length;
    focus();
  }

  /** Ask about one photo, so that one that cannot be read spoils no other answer.
   *
   * Returns whether an answer came. A question about it that is under way is taken back.
   */
  async function classify(photo) {
    photo.asked?.abort();
    const { signal } = photo.asked = new AbortController();
    photo.tile.setAttribute("aria-busy", "true");
    let shown;
    let error = "";
    try {
      const { before, ...now } = await asking(() => answer(photo, signal));
      shown = [...(before ? [said(before, "Before")] : []), said(now, "Now")];
    } catch (refused) {
      if (!refused.message) return false; // without a server, what was said stays
      error = refused.message;
      shown = [h("p", { className: "error", textContent: error })];
    }
    if (signal.aborted) return false;
    photo.tile.setAttribute("aria-busy", "false");
    photo.answers.replaceChildren(...shown);
    return !error;
  }

  async function answer(photo, signal) {
    const query = new URLSearchParams({ top: TOP, compare: state().model.can_undo });
    if (alarms.value) query.set("false_alarm", alarms.value);
    const [found] = await askJson(`predict?${query}`, sendingFiles([photo], signal));
    return found;
  }

  function said(found, when) {
    const guesses = found.top.map(([name, share]) => {
      const bar = h("i", { "aria-hidden": "true" });
      bar.style.setProperty("--share", share);
      // The model before may have known classes that are gone, but no other base classes.
      const tag = base.has(name) ? null : h("small", {}, "taught");
      return h("li", { className: tag ? "guess novel" : "guess" },
        h("span", {}, name, ...(tag ? [" ", tag] : [])),
        h("span", {}, `${(100 * share).toFixed(1)} %`), bar);
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
    for (const photo of tried) photo.asked.abort();
    tried = [];
    $("#tried").replaceChildren();
    $("#clear").hidden = true;
    $("#try input[type=file]").focus();
  });

  /** Without base images nothing tells how unlike them is too unlike. */
  function refresh() {
    const known = state().classes.filter((one) => one.kind === "base");
    base = new Set(known.flatMap((one) => [one.class, one.first_name ?? one.class]));
    const { adopted, expected_forgetting: spent } = state().model;
    const cannot = spent === null;
    alarms.disabled = cannot;
    if (cannot) alarms.value = "";
    const held = adopted ? "background photos" : "hold-out images";
    $("#alarms-text").textContent = cannot
      ? `This model has no ${held}, so it cannot tell what is unknown.`
      : "A false alarm is a photo of a known class that is marked as unknown.";
  }
  return { take, askAgain, refresh };
}
