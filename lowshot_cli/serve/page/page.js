/** The page: what it knows of the model, and how its sections learn of changes. */

import { budgeting } from "./budget.js";
import { listing } from "./classes.js";
import { $, count, joined, say, sentence, show, whileBusy } from "./dom.js";
import { ask, askJson, beat, onReturn } from "./server.js";
import { isCollecting, teaching } from "./teach.js";
import { trying } from "./tried.js";

const BEAT_MS = 10000;
const known = {
  model: { limits: { images: Infinity, bytes: Infinity, request: Infinity }, n_base: 0, n_novel: 0 },
  classes: [],
};
const state = () => known;

const teach = teaching(state, changed);
const tried = trying(state);
const showClasses = listing(state, changedElsewhere);
const showBudget = budgeting(state, changedElsewhere);

/** Learn what the model is now, and show it. */
async function refresh() {
  const model = await askJson("model");
  const classes = await askJson("classes"); // after the revision that tells when both are old
  Object.assign(known, { model, classes });
  const counts = [count(model.n_base, "base class", "base classes")];
  if (model.n_novel) counts.push(count(model.n_novel, "taught class", "taught classes"));
  const [file, target] = [model.checkpoint, model.writes_to].map((path) => path.split(/[\\/]/));
  $("#about").textContent = `${file.at(-1)}: ${model.backbone} with ${joined(counts)}.`;
  $("#saved").textContent = `Every change is saved in ${target.slice(-2).join("/")}.`;
  $("#saved").title = model.writes_to;
  $("[data-path$=state-dict]").hidden = !model.adopted; // it goes back to its library
  $("#undo").hidden = !model.can_undo;
  $("#undo").title = model.can_undo ? `Undo: ${model.undoes}` : "Undo"; // the text may be cut
  $("#undo span").textContent = $("#undo").title;
  show($("#undo-error"));
  showClasses();
  teach.refresh();
  tried.refresh();
  tried.askAgain();
  showBudget();
}

/** Show the model after a change that a text describes. */
async function changed(text) {
  await refresh();
  say(text);
}

/** The same after a change other than teaching, which makes what was said about that old. */
async function changedElsewhere(text) {
  teach.forget();
  await changed(text);
}

$("#undo").addEventListener("click", () => whileBusy($("#undo"), async () => {
  const { undoes, revision } = known.model;
  show($("#undo-error"));
  try {
    await ask(`undo?of=${revision}`, { method: "POST" });
    await changedElsewhere(`Undid: ${undoes}.`);
  } catch (refused) {
    await renew();
    show($("#undo-error"), refused);
  }
  if ($("#undo").hidden) $("#main").focus();
}));

for (const button of document.querySelectorAll("[data-path]")) {
  button.addEventListener("click", () => {
    whileBusy(button, () => download(button.dataset.path), $("#files progress"));
  });
}

/** Save a file that the server makes, or say why it cannot. */
async function download(path) {
  show($("#files-error"));
  try {
    const response = await ask(path);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = fileName(response.headers.get("Content-Disposition"));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`Downloaded ${link.download}.`);
  } catch (refused) {
    show($("#files-error"), refused);
  }
}

/** The name that the server gives a file, which may have letters beyond ASCII. */
function fileName(disposition) {
  const [, coded] = /filename\*=UTF-8''([^;]+)/.exec(disposition) ?? [];
  return coded ? decodeURIComponent(coded) : /filename="([^"]+)"/.exec(disposition)[1];
}

// Files that miss a drop zone would open in place of the page.
for (const name of ["dragover", "drop"]) {
  window.addEventListener(name, (event) => event.preventDefault());
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  ($("#try").contains(document.activeElement) ? tried : teach).take(files);
});
window.addEventListener("beforeunload", (event) => { if (isCollecting()) event.preventDefault(); });

/** Show everything anew, as another page or a new server may have changed it. */
async function renew() {
  const { revision } = known.model;
  try {
    await refresh();
    if (known.model.revision !== revision) teach.forget();
  } catch (refused) {
    if (refused.status) $("#about").textContent = sentence(refused.message);
  }
}

async function look() {
  if (document.hidden) return;
  const revision = await beat();
  if (revision !== null && revision !== known.model.revision) renew();
}

onReturn(async () => {
  await renew();
  say("The server answers again.");
});
setInterval(look, BEAT_MS);
document.addEventListener("visibilitychange", look);
renew();
