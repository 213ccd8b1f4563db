/** Where photos come from, and how they are shown. */

import { camera } from "./camera.js";
import { $, count, h, queue } from "./dom.js";

const PREVIEW = 192; // pixels, twice the side that is shown
const MOST_NAMED = 3;
const decoding = queue(2);

/** Fill an element with everything that gives photos.
 *
 * `purpose` and `shooting` end the names of what chooses photos and of what opens the camera.
 * `limits()` has the largest number of `images` and of `bytes` of one, `room()` how many more there
 * may be, and `give` gets a list of photos (`file`, `name`) and the name of the folder that held
 * them all, or "". Returns a function that takes files, for those that are pasted.
 */
export function photoSource(place, purpose, shooting, { limits, room, give }) {
  place.append($("#source").content.cloneNode(true));
  const [drop, input, note] = [$(".drop", place), $("input", place), $(".note", place)];
  input.setAttribute("aria-label", `Choose photos ${purpose}`);
  $(".open", place).setAttribute("aria-label", `Use the camera ${shooting}`);
  const tell = (text) => { note.textContent = text; };

  function take(files, folder = "", nothing = "No photos among these files.") {
    const { kept, left } = sorted(files, limits(), room());
    if (left.length) tell(`Left out: ${named(left)}.`);
    else tell(kept.length ? "" : nothing);
    if (kept.length) give(kept.map((file) => ({ file, name: file.name || "photo" })), folder);
  }

  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  drop.addEventListener("dragover", () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    drop.classList.remove("over");
    try {
      const { files, folder, hasFolder } = await dropped(event.dataTransfer);
      if (hasFolder) take(files, folder, "No photos in this folder.");
      else if (files.length) take(files);
      else tell("That was not a file. Save the picture, then drop the saved file here.");
    } catch {
      tell("This cannot be read. Choose the photos instead.");
    }
  });
  camera($(".camera", place), $(".open", place), (file) => take([file]), tell);
  return take;
}

/** Which files are worth sending, and those that are left out, with the reason. */
function sorted(files, { bytes, images }, room) {
  const kept = [];
  const left = [];
  for (const file of files) {
    if (file.name.startsWith(".")) continue; // made by the system beside photos
    if (file.type && !file.type.startsWith("image/")) left.push(`${file.name} (not an image)`);
    else if (file.size > bytes) left.push(`${file.name} (larger than ${mega(bytes)})`);
    else if (kept.length >= room) left.push(`${file.name} (at most ${count(images, "photo")})`);
    else kept.push(file);
  }
  return { kept, left };
}

/** A number of bytes in words. */
export const mega = (bytes) => `${Math.round(bytes / 1e6)}\u00a0MB`;

function named(left) {
  const others = left.length - MOST_NAMED;
  const more = others > 0 ? `; and ${count(others, "other file")}` : "";
  return left.slice(0, MOST_NAMED).join("; ") + more;
}

/** The files of a drop, those in folders included, and the name of the folder if it is just one. */
async function dropped(transfer) {
  // Entries must be asked for before the first wait.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) {
    return { files: [...transfer.files], folder: "", hasFolder: false };
  }
  const files = (await Promise.all(entries.map(walked))).flat();
  return { files, folder: entries.length === 1 ? entries[0].name : "", hasFolder: true };
}

async function walked(entry) {
  if (entry.isFile) return [await new Promise((done, fail) => entry.file(done, fail))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((done, fail) => reader.readEntries(done, fail));
    if (!some.length) break;
    found.push(...some);
  }
  found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  return (await Promise.all(found.map(walked))).flat();
}

/** A small picture of a photo; if the browser cannot read it, a text that says so. */
export function preview({ file, name }) {
  const place = h("div", { className: "photo" });
  decoding(() => createImageBitmap(file)).then((image) => {
    const scale = Math.min(1, PREVIEW / Math.min(image.width, image.height));
    const canvas = h("canvas", { width: image.width * scale, height: image.height * scale });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
    place.replaceChildren(canvas);
  }).catch(() => place.append(`no preview of ${name}`));
  return place;
}

/** A button that takes a photo away. */
export const awayButton = (photo, remove) => h("button", {
  type: "button", className: "away", textContent: "×", "aria-label": `Remove ${photo.name}`,
  onclick: () => remove(photo),
});

/** Where the focus goes when a photo goes: the button of the next one, or else `otherwise`. */
export function focusBeside(photo, otherwise) {
  const next = photo.tile.nextElementSibling ?? photo.tile.previousElementSibling;
  return () => (next ? $(".away", next) : otherwise).focus();
}

/** A name that no other photo has, as the server's answers name photos. */
export function distinct(name, taken) {
  if (!taken.has(name)) return name;
  const [, stem, suffix] = name.match(/^(.*?)(\.[^.]*)?$/s);
  for (let n = 2; ; n += 1) {
    const other = `${stem}-${n}${suffix ?? ""}`;
    if (!taken.has(other)) return other;
  }
}
