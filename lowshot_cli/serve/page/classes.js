/** The classes of the model, to be renamed and removed. */

import { $, arrange, count, h, show, thousands, whileBusy } from "./dom.js";
import { ask, classPath, sending, wrongName } from "./server.js";

const MOST_THUMBNAILS = 12;
const MOST_SHOWN = 1000;

/** Wire the section; `state()` has the classes, `changed` is called after a change.
 *
 * Returns a function that shows the classes anew.
 */
export function listing(state, changed) {
  const details = $("#base");
  const filter = $("#filter");
  let rows = new Map(); // of each class: what the server said of it, and its row

  function refresh() {
    const { classes } = state();
    const hadFocus = $("#classes").contains(document.activeElement);
    rows = new Map(classes.map((one) => [one.class, kept(one)]));
    const novel = classes.filter((one) => one.kind === "novel");
    $("#none").hidden = novel.length > 0;
    arrange($("#novel"), novel.map(row));
    const n = state().model.n_base;
    $("summary", details).textContent = count(n, "base class", "base classes");
    $(".field", details).hidden = n < 10;
    renewBase();
    if (hadFocus && document.activeElement === document.body) $("#classes-title").focus();
  }

  /** What is shown of a class: as it was, a question in it included, unless the class changed. */
  function kept(one) {
    const text = JSON.stringify(one);
    const old = rows.get(one.class);
    return old?.text === text ? old : { text, row: null };
  }

  function row(one) {
    const shown = rows.get(one.class);
    return shown.row ??= h("li", {}, entry(one), thumbnails(one));
  }

  function renewBase() {
    if (!details.open) return;
    const wanted = filter.value.trim().toLowerCase();
    const base = state().classes.filter((one) => one.kind === "base");
    const found = base.filter((one) => one.class.toLowerCase().includes(wanted));
    arrange($("ul", details), found.slice(0, MOST_SHOWN).map(row));
    const more = found.length > MOST_SHOWN ? `, the first ${thousands(MOST_SHOWN)} shown` : "";
    $("#shown").textContent = wanted || more
      ? `${thousands(found.length)} of ${thousands(base.length)}${more}` : "";
  }

  /** The name of a class, what it was learnt from, and what can be done with it. */
  function entry(one) {
    const isNovel = one.kind === "novel";
    const row = h("div", { className: "entry" });
    const [renames, removes] = ["Rename", "Remove"].map((verb) => h("button", {
      type: "button", className: "small", textContent: verb, "aria-label": `${verb} ${one.class}`,
      "data-verb": verb,
    }));
    renames.addEventListener("click", () => askName(row, one, renames));
    removes.addEventListener("click", () => askWhether(row, one, removes));
    const name = h(isNovel ? "h4" : "span", { textContent: one.class });
    const label = h("div", { className: "label" }, name);
    if (isNovel) label.append(h("span", { className: "hint" }, count(one.shots, "photo")));
    row.append(label, renames, removes);
    return row;
  }

  function askName(row, one, opener) {
    const input = h("input", {
      value: one.class, "aria-label": `New name of ${one.class}`, autocomplete: "off",
    });
    question(row, opener, [input], "Rename", async () => {
      const to = input.value.trim();
      const wrong = wrongName(to);
      if (wrong) throw new Error(wrong);
      const path = `${classPath(one.class)}?force=${one.kind === "base"}`;
      await ask(path, sending("PATCH", { name: to }));
      await changed(`Renamed ${one.class} to ${to}.`);
      focus(rows.get(to.normalize("NFC"))?.row, "Rename");
    });
    input.select();
  }

  function askWhether(row, one, opener) {
    const isBase = one.kind === "base";
    const more = isBase ? " It is a base class: only undo brings it back." : "";
    const text = `Remove ${one.class}?${more}`;
    question(row, opener, [h("p", { textContent: text })], "Remove", async () => {
      const item = row.parentElement;
      const next = item.nextElementSibling ?? item.previousElementSibling;
      await ask(`${classPath(one.class)}?force=${isBase}`, { method: "DELETE" });
      await changed(`Removed ${one.class}.`);
      focus(next, "Remove");
    });
  }

  /** Focus a button of a row, or the title if the row is not shown. */
  function focus(item, verb) {
    const button = item && $(`[data-verb=${verb}]`, item);
    (button?.checkVisibility() ? button : $("#classes-title")).focus();
  }

  /** Ask in the row; a refusal is shown there, and Escape or Cancel takes the question back. */
  function question(row, opener, asked, verb, act) {
    const error = h("p", { className: "error", role: "alert" });
    const go = h("button", { className: "small main", textContent: verb });
    const cancel = h("button", { type: "button", className: "small", textContent: "Cancel" });
    const form = h("form", { noValidate: true }, ...asked, go, cancel, error);
    const others = [...row.children];
    const back = () => {
      form.remove();
      for (const each of others) each.hidden = false;
      opener.focus();
    };
    cancel.addEventListener("click", back);
    form.addEventListener("keydown", (event) => { if (event.key === "Escape") back(); });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      whileBusy(go, async () => {
        show(error);
        try {
          await act();
        } catch (refused) {
          show(error, refused);
        }
      });
    });
    for (const each of others) each.hidden = true;
    row.append(form);
    $("input", form)?.focus();
    if (!form.contains(document.activeElement)) go.focus();
  }

  details.addEventListener("toggle", renewBase);
  filter.addEventListener("input", renewBase);
  return refresh;
}

/** The photos that a class was learnt from, as far as they are kept here. */
function thumbnails(one) {
  const kept = one.thumbnails ?? [];
  if (!kept.length) return null;
  const shown = kept.slice(0, MOST_THUMBNAILS).map((hash) => h("img", {
    src: `thumbnails/${encodeURIComponent(hash)}`, alt: "", width: 48, height: 48, loading: "lazy",
  }));
  const more = kept.length - shown.length;
  return h("div", { className: "thumbs" }, ...shown,
    ...(more > 0 ? [h("span", { className: "hint", textContent: `and ${more} more` })] : []));
}
