/** Requests to the server. */

import { $, sentence } from "./dom.js";

const RETRIES = 5;
const AGAIN_MS = 2000;

/** What the server refused: one text that says what is wrong and what to do. */
export class Refused extends Error {
  constructor(status, text, hint = "") {
    super(hint ? `${sentence(text)} ${sentence(hint)}` : sentence(text));
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
 * Throws `Refused` with the error that the server gives, or with status 0 if none arrives.
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

/** Options of a request that sends files, each under its name. */
export function sendingFiles(files) {
  const body = new FormData();
  for (const { file, name } of files) body.append("images", file, name);
  return { method: "POST", body };
}

/** The address of a class. */
export const classPath = (name) => `classes/${encodeURIComponent(name)}`;

async function fetched(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    // The browser fails alike when a chosen file has changed since.
    if (!(options.body instanceof FormData) || !(await answers())) throw lost();
    throw new Refused(
      0, "a photo cannot be read", "it was changed or moved since you chose it: choose it again",
    );
  }
}

async function refusal(response) {
  if (response.status === 401) {
    return new Refused(
      401, "this page has no access", "open the address that lowshot serve printed, with its token",
    );
  }
  try {
    const { error, hint } = await response.json();
    return new Refused(response.status, error, hint);
  } catch {
    return new Refused(response.status, `the server answered with status ${response.status}`);
  }
}

/** Say that the server is gone, and look for it until it is back. */
function lost() {
  if (!isLost) {
    isLost = true;
    $("#lost").textContent =
      "The server does not answer. Start lowshot serve again: this page goes on by itself, " +
      "and keeps your photos as long as you leave it open.";
    wait();
  }
  return new Refused(0, "the server does not answer");
}

async function wait() {
  while (!(await answers())) await sleep(AGAIN_MS);
  isLost = false;
  $("#lost").textContent = "";
  back();
}

async function answers() {
  try {
    return (await fetch("health")).ok;
  } catch {
    return false;
  }
}

/** Look whether the server still answers; the number of its classes, or null. */
export async function beat() {
  try {
    return (await askJson("health")).n_classes;
  } catch {
    return null;
  }
}

function sleep(ms) {
  return new Promise((done) => setTimeout(done, ms));
}
