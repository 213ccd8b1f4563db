/** Collect photos of a new class, teach it, and say what that cost and what may mislead it. */

import { $, count, h, joined, sentence, show, whileBusy } from "./dom.js";
import { awayButton, distinct, focusBeside, mega, photoSource, preview } from "./photos.js";
import { askJson, classPath, sendingFiles } from "./server.js";

let collected = [];

/** Whether photos wait to be taught. */
export const isCollecting = () => collected.length > 0;

/** Wire the section; `state()` has the model and its classes, `changed` is called after a change.
 *
 * Returns `take`, for pasted files, and `refresh`, for when the model has changed.
 */
export function teaching(state, changed) {
  const [form, name, replace] = [$("#teach form"), $("#name"), $("#replace")];
  const button = $("#go");
  const error = $("#teach-error");

  const take = photoSource($("#teach .source"), "of the class", {
    limits: () => state().model.limits,
    room: () => state().model.limits.images - collected.length,
    give(photos, folder) {
      const taken = new Set(collected.map((one) => one.name));
      for (const photo of photos) {
        photo.name = distinct(photo.name, taken);
        taken.add(photo.name);
        add(photo);
      }
      if (folder && !name.value) name.value = folder;
      renew();
    },
  });

  function add(photo) {
    photo.tile = h("li", {}, preview(photo), awayButton(photo, remove));
    collected.push(photo);
    $("#collected").append(photo.tile);
  }

  function remove(photo) {
    const focus = focusBeside(photo, $("input[type=file]", form));
    drop([photo]);
    focus();
  }

  function drop(photos) {
    collected = collected.filter((one) => !photos.includes(one));
    for (const photo of photos) photo.tile.remove();
    renew();
  }

  /** Say what the button does, and whether the name is taken. */
  function renew() {
    const n = collected.length;
    button.textContent = n ? `Teach from ${count(n, "photo")}` : "Teach";
    const known = state().classes.find((one) => one.class === name.value.trim().normalize("NFC"));
    $("#known").hidden = !known;
    if (!known) replace.checked = false;
    else if (known.kind === "base") {
      $("#known-text").textContent = `${known.class} is a base class: replace it by these photos`;
    } else {
      const old = count(known.shots, "photo");
      $("#known-text").textContent = `${known.class} is known: replace its ${old} by these`;
    }
  }

  async function teach(title, photos, replaces) {
    const bytes = photos.reduce((sum, { file }) => sum + file.size, 0);
    const most = state().model.limits.request;
    if (bytes > most) {
      throw new Error(
        `These photos have ${mega(bytes)}, and ${mega(most)} can be sent at once: remove some.`);
    }
    const began = performance.now();
    const path = `${classPath(title)}?replace=${replaces}`;
    const record = await askJson(path, sendingFiles(photos));
    const seconds = (performance.now() - began) / 1000;
    await changed("");
    report(record, photos, seconds);
  }

  function report(record, photos, seconds) {
    const [one] = record.classes;
    const model = state().model;
    const shots = count(one.support.length, "photo");
    const lines = [
      `Learnt ${one.class} from ${shots} in ${seconds.toFixed(1)}\u00a0s.`,
      cost(record, model),
    ];
    const repeated = photos.length - one.support.length;
    if (repeated > 0) {
      const why = repeated === 1 ? "it repeats another" : "they repeat others";
      lines.push(`${count(repeated, "photo")} left out, as ${why}.`);
    }
    const held = model.adopted ? "background photos" : "hold-out images";
    const doubts = [...misleading(one, held), ...weakening(record)];
    const odd = new Map(one.outliers.map((each) => [each.image, each.resembles]));
    const tiles = photos.filter(({ name }) => one.support.includes(name)).map((photo) => {
      const like = odd.get(photo.name);
      const text = like === undefined ? null : h("span", { className: "warn" }, `like ${like}`);
      return h("li", { className: text ? "odd" : "" }, preview(photo), text);
    });
    const again = odd.size && odd.size < photos.length ? without(one, photos, odd) : null;
    $("#taught").replaceChildren(
      ...lines.map((text) => h("p", { textContent: text })),
      ...doubts.map((text) => h("p", { className: "warn", textContent: text })),
      h("ul", { className: "photos", "aria-label": `photos of ${one.class}` }, ...tiles),
      ...(again ? [h("p", { className: "actions" }, again)] : []),
    );
  }

  /** A button that teaches the class again without the photos that are unlike the others. */
  function without(one, photos, odd) {
    const kept = photos.filter(({ name }) => !odd.has(name));
    const them = odd.size === 1 ? "the marked photo" : `the ${odd.size} marked photos`;
    const redo = h("button", { type: "button", textContent: `Teach again without ${them}` });
    redo.addEventListener("click", () => whileBusy(redo, async () => {
      show(error);
      try {
        await teach(one.class, kept, true);
        button.focus();
      } catch (refused) {
        show(error, refused);
      }
    }));
    return redo;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const title = name.value.trim();
    name.setAttribute("aria-invalid", String(!title));
    if (!title) {
      show(error, "Give the class a name.");
      name.focus();
    } else if (!collected.length) {
      show(error, "Add photos of the class first: about five are enough.");
      $("input[type=file]", form).focus();
    } else whileBusy(button, () => submit(title), $("progress", form));
  });

  async function submit(title) {
    show(error);
    const photos = [...collected];
    try {
      await teach(title, photos, replace.checked);
    } catch (refused) {
      return show(error, refused);
    }
    drop(photos);
    name.value = "";
    renew();
  }

  name.addEventListener("input", () => {
    name.removeAttribute("aria-invalid");
    renew();
  });
  return { take, refresh: renew, forget: () => $("#taught").replaceChildren() };
}

/** What the novel classes of a model cost, in words. */
export function cost(record, model) {
  const spent = record.expected_forgetting;
  const [subject, ends] = model.n_novel > 1
    ? [`All ${model.n_novel} novel classes together`, ""] : ["It", "s"];
  if (spent === null) {
    return model.adopted
      ? "Without background photos the cost is not known, so the class wins only what is very " +
        "like its photos. A model made by lowshot train-base --background allows more."
      : "The cost is not known: the model has no hold-out images.";
  }
  if (model.adopted) {
    const photos = count(model.n_background, "background photo");
    return `${subject} change${ends} ${spent.toFixed(1)}\u00a0% of the decisions on ${photos}.`;
  }
  return `${subject} cost${ends} an estimated ${points(spent)} of base accuracy.`;
}

const points = (x) => `${x.toFixed(1)} ${x.toFixed(1) === "1.0" ? "point" : "points"}`;

function misleading(one, held) {
  const shots = one.support.length;
  const lines = one.confused.map((other) => {
    const counts = [];
    if (other.lost) counts.push(`loses ${other.lost} of its ${other.n_holdout} ${held}`);
    if (other.won) counts.push(`gets ${other.won} of the ${shots} photos`);
    return `${one.class} is confused with ${other.class}, which ${joined(counts)}.`;
  });
  if (one.outliers.length) {
    const n = one.outliers.length;
    const look = n === 1 ? "looks" : "look";
    lines.push(`${count(n, "photo")} of ${one.class} ${look} unlike the others: see the marks.`);
  }
  const won = one.supports_won ?? null;
  if (won !== null && 2 * won < shots && !one.outliers.length) {
    lines.push(sentence(
      `${one.class} gets ${won} of its ${shots} photos if it is learnt from the others, so few ` +
      "other photos of it will be known: more photos help, or a larger budget"));
  }
  return lines;
}

function weakening(record) {
  return record.weakened.map((one) =>
    `${one.class} is known less well now: of its ${one.n_support} photos, each judged by the ` +
    `others, it gets ${one.after}, before ${one.before}. A larger budget helps.`);
}
