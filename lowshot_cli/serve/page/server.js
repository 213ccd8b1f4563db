/** Requests to the server. */

import { $, sentence } from "./dom.js";

const RETRIES = 5;
const AGAIN_MS = 2000;
const GONE =
  "The server does not answer. Start lowshot serve again: this page goes on by itself, " +
  "and keeps your photos as long as you leave it open.";
const MOVED =
  "The server has a new address. Open the one that lowshot serve printed: this page then goes " +
  "on too, and keeps your photos as long as you leave it open.";

/** What the server refused: one text that says what is wrong and what to do.
 *
 * The text is empty if there is no server, which is said in one place for the whole page.
 */
export class Refused extends Error {
  constructor(status, text, hint = "") {
    super([text, hint].filter(Boolean).map(sentence).join(" "));
    this.status = status;
  }
}

let back = () => {};
let isLost = false;

/** Call a function each time the server answers again. */
export function onReturn(call) {
  back = call;
}

/** The response of the server; a busy one is asked again.
 *
 * Throws `Refused` with the error that the server gives, or with status 0 if none arrives. A
 * `signal` among the options aborts it.
 */
export async function ask(path, options = {}) {
  for (let left = RETRIES; ; left -= 1) {
    const response = await fetched(path, options);
    if (response.ok) return response;
    if (response.status === 503 && left) {
      await sleep(1000 * (Number(response.headers.get("Retry-After")) || 1));
      continue;
    }
    throw await refusal(response);
  }
}

/** The JSON document that the server answers with. */
export async function askJson(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch {
    throw lost();
  }
}

/** Options of a request that sends JSON. */
export function sending(method, value) {
  return { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) };
}

/** Options of a request that sends files, each under its name; a signal can abort it. */
export function sendingFiles(files, signal = null) {
  const body = new FormData();
  for (const { file, name } of files) body.append("images", file, name);
  return { method: "POST", body, signal };
}

/** The address of a class. */
export const classPath = (name) => `classes/${encodeURIComponent(name)}`;

/** What is wrong with the name of a class, or "". */
export function wrongName(name) {
  if (!name) return "Give the class a name.";
  // In an address these are folders.
  return [".", ".."].includes(name) ? "Choose another name than one or two dots." : "";
}

async function fetched(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    // The browser fails alike when a chosen file has changed since.
    if (!(options.body instanceof FormData) || (await health()) !== 200) throw lost();
    throw new Refused(
      0, "a photo cannot be read", "it was changed or moved since you chose it: choose it again",
    );
  }
}

async function refusal(response) {
  if (response.status === 401) return lost(MOVED);
  try {
    const { error, hint } = await response.json();
    return new Refused(response.status, error, hint);
  } catch {
    return new Refused(response.status, `the server answered with status ${response.status}`);
  }
}

/** Say that the server is gone, and look for it until it is back. */
function lost(text = GONE) {
  if (!isLost) {
    isLost = true;
    wait(text);
  }
  return new Refused(0, "");
}

async function wait(text) {
  const place = $("#lost");
  place.textContent = text;
  for (let status; (status = await health()) !== 200; await sleep(AGAIN_MS)) {
    const now = status === 401 ? MOVED : GONE;
    if (place.textContent !== now) place.textContent = now; // each time is read aloud
  }
  isLost = false;
  place.textContent = "";
  back();
}

/** The status of the server: 200 if it answers this page, 0 if there is none. */
async function health() {
  try {
    return (await fetch("health")).status;
  } catch {
    return 0;
  }
}

/** Look whether the server still answers; the revision of its model, or null. */
export async function beat() {
  try {
    return (await askJson("health")).revision;
  } catch {
    return null;
  }
}

function sleep(ms) {
  return new Promise((done) => setTimeout(done, ms));
}
