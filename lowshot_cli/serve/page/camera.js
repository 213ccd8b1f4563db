/** Photos from the camera: one for each press, several while the button is held. */

import { whileBusy } from "./dom.js";

const HOLD_MS = 400;
const EVERY_MS = 250;
const REFUSALS = {
  NotAllowedError:
    "The camera is blocked. Allow it beside the address of this page, or choose photos instead.",
  NotFoundError: "No camera is found. Choose photos instead.",
  NotReadableError: "The camera is in use elsewhere. Close the other program, or choose photos.",
};
const NO_CAMERA =
  "Browsers allow the camera only on this computer's own pages or over HTTPS. " +
  "Choose photos instead.";
const STOPPED = "The camera has stopped. Open it again, or choose photos instead.";

/** Let an element with a video and buttons take photos.
 *
 * `give` gets each photo as a file, and `tell` a text when there is no camera.
 */
export function camera(panel, opener, give, tell) {
  const video = panel.querySelector("video");
  const shoot = panel.querySelector(".shoot");
  let stream = null;
  let taken = 0;

  async function open() {
    tell("");
    if (stream) return;
    if (!navigator.mediaDevices) return tell(NO_CAMERA);
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: "environment", width: { ideal: 1280 } },
      });
    } catch (error) {
      return tell(REFUSALS[error.name] ?? `The camera does not open: ${error.message}.`);
    }
    stream.getVideoTracks()[0].addEventListener("ended", () => { close(); tell(STOPPED); });
    video.srcObject = stream;
    panel.hidden = false;
    opener.hidden = true;
    await video.play().catch(() => {});
    shoot.focus();
  }

  function close() {
    const hadFocus = panel.contains(document.activeElement);
    stream?.getTracks().forEach((track) => track.stop());
    stream = video.srcObject = null;
    panel.hidden = true;
    opener.hidden = false;
    if (hadFocus) opener.focus();
  }

  async function take() {
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    const content = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    if (!content) return;
    taken += 1;
    give(new File([content], `camera-${taken}.jpg`, { type: "image/jpeg" }));
  }

  opener.addEventListener("click", () => whileBusy(opener, open));
  panel.querySelector(".close").addEventListener("click", close);
  whilePressed(shoot, take);
}

/** Act when a button is pressed, and again and again while it is held, by finger, mouse or key. */
function whilePressed(button, act) {
  let timer = 0;
  let begun = false;

  function start(event) {
    if (event.type === "keydown" && (event.repeat || ![" ", "Enter"].includes(event.key))) return;
    if (event.button > 0) return;
    begun = true;
    act();
    clearTimeout(timer);
    timer = setTimeout(function again() {
      act();
      timer = setTimeout(again, EVERY_MS);
    }, HOLD_MS);
  }

  function stop() {
    clearTimeout(timer);
    setTimeout(() => { begun = false; }, 0); // after the click that ends a press
  }

  button.addEventListener("pointerdown", start);
  button.addEventListener("keydown", start);
  for (const name of ["pointerup", "pointercancel", "pointerleave", "keyup", "blur"]) {
    button.addEventListener(name, stop);
  }
  // A screen reader clicks without pressing.
  button.addEventListener("click", () => { if (!begun) act(); });
}
