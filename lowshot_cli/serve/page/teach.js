/** Collect photos of a new class, teach it, and say what that cost and what may mislead it. */

import { $, count, h, show, whileBusy } from "./dom.js";
import { awayButton, distinct, focusBeside, mega, photoSource, preview } from "./photos.js";
import { askJson, classPath, sendingFiles, wrongName } from "./server.js";

let collected = [];

/** Whether photos wait to be taught. */
export const isCollecting = () => collected.length > 0;

/** Wire the section; `state()` has the model and its classes, `changed` is called after a change.
 *
 * Returns `take`, for pasted files, and `refresh`, for when the model has changed.
 */
export function teaching(state, changed) {
  const [form, name, replace] = [$("#teach form"), $("#name"), $("#replace")];
  const [button, empty] = [$("#go"), $("#empty")];
  const error = $("#teach-error");

  const take = photoSource($("#teach .source"), "of the class", "to photograph the class", {
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
    photo.picture = preview(photo);
    photo.tile = h("li", {}, photo.picture, awayButton(photo, remove));
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
    show(error);
    const n = collected.length;
    button.textContent = n ? `Teach from ${count(n, "photo")}` : "Teach";
    empty.hidden = !n;
    const typed = typedName();
    const known = knownAs(typed);
    $("#known").hidden = !known;
    if (!known) replace.checked = false;
    else {
      const old = known.kind === "base" ? "it" : `its ${count(known.shots, "photo")}`;
      $("#known-text").textContent = `${what(typed, known)}. Replace ${old} with these photos.`;
    }
  }

  const typedName = () => name.value.trim().normalize("NFC");

  /** The class that has a name, or had it first. */
  function knownAs(typed) {
    const { classes } = state();
    return classes.find((one) => one.class === typed)
      ?? classes.find((one) => one.first_name === typed);
  }

  function what(typed, known) {
    if (known.class !== typed) return `${typed} is now called ${known.class}`;
    return `${typed} is ${known.kind === "base" ? "a base class" : "already taught"}`;
  }

  async function teach(title, photos, replaces) {
    const bytes = photos.reduce((sum, { file }) => sum + file.size, 0);
    const most = state().model.limits.request;
    if (bytes > most) {
      throw new Error(
        `These photos are ${mega(bytes)} in total. ` +
        `At most ${mega(most)} can be sent: remove some.`);
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
      const text = like === undefined
        ? null : h("span", { className: "warn" }, `${photo.name}: like ${like}`);
      photo.picture.setAttribute("role", "img");
      photo.picture.setAttribute("aria-label", photo.name);
      return h("li", { className: text ? "odd" : "" }, photo.picture, text);
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
    const wrong = wrongName(title);
    const known = knownAs(typedName());
    name.setAttribute("aria-invalid", String(Boolean(wrong)));
    if (wrong) {
      show(error, wrong);
      name.focus();
    } else if (known && !replace.checked) {
      const said = what(typedName(), known);
      show(error, `${said}. Tick the box to replace it, or choose another name.`);
      replace.focus();
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
    if (name.value.trim() === title) name.value = ""; // the next name may be typed already
    drop(photos);
  }

  replace.addEventListener("change", () => show(error));
  empty.addEventListener("click", () => {
    drop(collected);
    $("input[type=file]", form).focus();
  });
  name.addEventListener("input", () => {
    name.removeAttribute("aria-invalid");
    renew();
  });
  return { take, refresh: renew, forget: () => $("#taught").replaceChildren() };
}

/** What the taught classes of a model cost, in words. */
export function cost(record, model) {
  const spent = record.expected_forgetting;
  if (spent === null) {
    return model.adopted
      ? "Without background photos the cost is not known, so only images very like its photos " +
        "are given this class. A model made by lowshot train-base --background allows more."
      : "The cost is not known: the model has no hold-out images.";
  }
  const [who, ends] = model.n_novel > 1
    ? [`Together, the ${model.n_novel} classes you taught`, ""] : ["It", "s"];
  if (model.adopted) {
    const photos = count(model.n_background, "background photo");
    return `${who} change${ends} ${spent.toFixed(1)}\u00a0% of the decisions on ${photos}.`;
  }
  const points = spent.toFixed(1) === "1.0" ? "point" : "points";
  return `${who} cost${ends} about ${spent.toFixed(1)} ${points} of accuracy on the base classes.`;
}

function misleading(one, held) {
  const shots = one.support.length;
  const lines = one.confused.flatMap(({ class: other, lost, n_holdout: n, won }) => [
    lost && `${lost} of the ${n} ${held} of ${other} ${are(lost)} now taken for ${one.class}.`,
    won && `${won} of the ${shots} photos of ${one.class} ${are(won)} taken for ${other} ` +
      `if it is learnt without ${won === 1 ? "this one" : "them"}.`,
  ].filter(Boolean));
  const odd = one.outliers.length;
  if (odd) {
    const [look, marked] = odd === 1 ? ["looks", "It is"] : ["look", "They are"];
    lines.push(
      `${count(odd, "photo")} of ${one.class} ${look} unlike the others. ${marked} marked below.`);
  }
  const won = one.supports_won ?? null;
  // A photo that does not belong may be why some are not known, but not why none is.
  if (won !== null && 2 * won < shots && !(won && odd)) {
    lines.push(`Learnt without each photo in turn, ${one.class} recognises only ${won} of its ` +
      `${shots}. Add photos, or allow a larger cost.`);
  }
  return lines;
}

const are = (n) => (n === 1 ? "is" : "are");

function weakening(record) {
  return record.weakened.map((one) =>
    `${one.class} is recognised less well now: ${one.after} of its ${one.n_support} photos, ` +
    `${one.before} before. Allowing a larger cost helps.`);
}
