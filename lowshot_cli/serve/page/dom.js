/** Elements and words. Texts are set as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** The element that a selector finds. */
export const $ = (selector, within = document) => within.querySelector(selector);

/** An element with properties, attributes (`role`, `data-x`, `aria-x`), and children. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** An element of a drawing with attributes and children. */
export function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** "1,000". */
export const thousands = (n) => n.toLocaleString("en");

/** "1 photo", "1,000 photos". */
export function count(n, one, many = `${one}s`) {
  return `${thousands(n)} ${n === 1 ? one : many}`;
}

/** A number with at most two digits after the point. */
export const short = (x) => String(Math.round(100 * x) / 100);

/** "a", "a and b", "a, b and c". */
export function joined(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** A sentence: with a capital and a full stop. */
export function sentence(text) {
  const end = /[.!?]$/.test(text) ? "" : ".";
  return text.charAt(0).toUpperCase() + text.slice(1) + end;
}

/** Say something in the line below the title, aloud too. */
export function say(text) {
  $("#status").textContent = text;
}

/** Show an error, or nothing, where it belongs. */
export function show(place, error = null) {
  place.textContent = error?.message ?? error ?? "";
}

/** Make nodes the children of a list. Those that stay are not moved, so they keep the focus. */
export function arrange(list, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  let place = list.firstElementChild;
  for (const node of nodes) {
    if (node === place) place = place.nextElementSibling;
    else list.insertBefore(node, place);
  }
}

/** Do something for which a button waits; further presses are ignored meanwhile.
 *
 * Several buttons may share a bar of progress, which is shown as long as one of them waits.
 */
export async function whileBusy(button, work, progress = null) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  if (progress) {
    progress.waiting = (progress.waiting ?? 0) + 1;
    progress.hidden = false;
  }
  try {
    await work();
  } finally {
    button.removeAttribute("aria-disabled");
    if (progress) progress.hidden = --progress.waiting === 0;
  }
}

/** A function that does what it is given as soon as fewer than `most` others are under way. */
export function queue(most) {
  const waiting = [];
  let busy = 0;

  async function next() {
    if (busy === most || !waiting.length) return;
    busy += 1;
    await waiting.shift()();
    busy -= 1;
    next();
  }

  return (work) => new Promise((done, fail) => {
    waiting.push(() => work().then(done, fail));
    next();
  });
}
