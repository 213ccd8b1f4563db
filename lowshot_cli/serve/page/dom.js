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

/** A number with at most one digit after the point. */
export const short = (x) => String(Math.round(10 * x) / 10);

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
  if (error === null || error instanceof Error) place.textContent = error ? error.message : "";
  else place.textContent = error;
}

/** Do something for which a button waits; further presses are ignored meanwhile. */
export async function whileBusy(button, work, progress = null) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  if (progress) progress.hidden = false;
  try {
    await work();
  } finally {
    button.removeAttribute("aria-disabled");
    if (progress) progress.hidden = true;
  }
}
