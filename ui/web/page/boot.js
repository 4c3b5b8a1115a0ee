// Starts the interface; where it cannot start, or breaks, says so with what to do. The host keeps the texts, the model
// and the layout, so starting the page anew loses nothing.

const cover = document.getElementById("cover");
const canvas = document.getElementById("model1");
const part = (name) => document.getElementById(`cover-${name}`);

function fail(title, text, details) {
  cover.classList.remove("gone");
  cover.classList.add("failed");
  cover.setAttribute("role", "alert");
  part("title").textContent = title;
  part("text").textContent = text;
  part("details").textContent = details;
  part("details").hidden = !details;
  part("actions").hidden = false;
}

part("restart").addEventListener("click", () => location.reload());
part("copy").addEventListener("click", async () => {
  const report = [
    part("title").textContent, part("text").textContent, part("details").textContent, navigator.userAgent,
    `${innerWidth} x ${innerHeight} at ${devicePixelRatio}`, new Date().toISOString(),
  ].join("\n");
  try {
    await navigator.clipboard.writeText(report);
    part("copy").textContent = "Copied";
  } catch {
    // Pages that are not served securely have no clipboard: the report is selected instead.
    part("details").textContent = report;
    part("details").hidden = false;
    getSelection().selectAllChildren(part("details"));
    part("copy").textContent = "Selected: press Ctrl+C";
  }
});

// A panic in the interface ends as a trap; the sentence is left in `model1_panic` by the panic hook before that.
let broken = false;
function crashed(error) {
  if (broken || !(globalThis.model1_panic || error instanceof WebAssembly.RuntimeError)) return;
  broken = true;
  fail(
    "The interface stopped working",
    "A fault in MODEL1 Explorer. The model and your texts are safe in the host: restart the interface to go on.",
    `${globalThis.model1_panic ?? ""}\n${error?.stack ?? error ?? ""}`.trim(),
  );
}
addEventListener("error", (event) => crashed(event.error));
addEventListener("unhandledrejection", (event) => crashed(event.reason));

// The graphics driver may take the canvas away (sleep, driver restart). The page starts anew once it is back.
canvas.addEventListener("webglcontextlost", (event) => {
  event.preventDefault();
  cover.classList.remove("gone");
  part("text").textContent = "The graphics driver was restarted; the interface comes back …";
  setTimeout(() => location.reload(), 3000);
});
canvas.addEventListener("webglcontextrestored", () => location.reload());

function hasWebGl() {
  const probe = document.createElement("canvas");
  const context = probe.getContext("webgl2") ?? probe.getContext("webgl");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}

// How long the webview takes from frame to frame when everything changes, in milliseconds; the interface offers the
// native window where that is slow. Browsers are left alone: there is no other window to offer.
async function measureFrames() {
  if (!("__TAURI_INTERNALS__" in window)) return;
  const probe = document.createElement("canvas");
  probe.width = innerWidth * devicePixelRatio;
  probe.height = innerHeight * devicePixelRatio;
  document.body.insertBefore(probe, cover);
  const gl = probe.getContext("webgl2") ?? probe.getContext("webgl");
  // Contexts are few, and one that was given up counts until it is collected: then nothing is measured.
  if (gl === null) {
    probe.remove();
    return;
  }
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  let before = await frame();
  for (let i = 0; i < 12 && times.reduce((a, b) => a + b, 0) < 1500; i++) {
    gl.clearColor(0, 0, 0.01 * i, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const now = await frame();
    times.push(now - before);
    before = now;
  }
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  probe.remove();
  // The first two frames are those of the page itself.
  const sorted = times.slice(2).sort((a, b) => a - b);
  window.model1_frame_ms = sorted[sorted.length >> 1];
}

// The interface's runner asks for an animation frame after every animation frame, only to look whether there is something
// to paint. That costs percents of a core all day, so it gets its frame when something happened, arrived
// (`model1_wake`) or is due (`model1_next`, on the clock of `performance.now`).
function rest() {
  const ask = window.requestAnimationFrame.bind(window);
  const cancel = window.cancelAnimationFrame.bind(window);
  const PARKED = -1;
  let parked = null;
  let timer = 0;
  let awake = 0;
  function wake() {
    // What an event causes is painted in the frames after it.
    awake = performance.now() + 250;
    if (parked === null) return;
    clearTimeout(timer);
    const callback = parked;
    parked = null;
    window.model1_asleep = false;
    ask(callback);
  }
  window.model1_next = 0;
  window.model1_wake = wake;
  window.requestAnimationFrame = (callback) => {
    const now = performance.now();
    const wait = window.model1_next - now;
    if (now < awake || wait < 20) return ask(callback);
    parked = callback;
    window.model1_asleep = true;
    // Timers hold 24 days; what is due later is due never.
    timer = wait < 2 ** 31 ? setTimeout(wake, wait) : 0;
    return PARKED;
  };
  window.cancelAnimationFrame = (id) => {
    if (id !== PARKED) return cancel(id);
    clearTimeout(timer);
    parked = null;
  };
  const happens = [
    "pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave", "mousedown", "mousemove", "mouseup",
    "mouseleave", "wheel", "touchstart", "touchmove", "touchend", "touchcancel", "keydown", "keyup", "beforeinput", "input",
    "compositionstart", "compositionupdate", "compositionend", "copy", "cut", "paste", "dragenter", "dragover", "dragleave",
    "drop", "focus", "blur", "resize", "contextmenu", "fullscreenchange", "visibilitychange", "webglcontextrestored",
  ];
  for (const name of happens) addEventListener(name, wake, { capture: true, passive: true });
  for (const query of ["(prefers-color-scheme: dark)", "(prefers-reduced-motion: reduce)"]) {
    matchMedia(query).addEventListener("change", wake);
  }
  // The pixels per point may change without the window's size (another display, the browser's zoom).
  new ResizeObserver(wake).observe(canvas);
}

async function main() {
  if (typeof WebAssembly !== "object") {
    return fail("This browser cannot run the interface", "It has no WebAssembly. Any browser of the last years has it.", "");
  }
  if (!hasWebGl()) {
    return fail(
      "This browser cannot draw the interface",
      "WebGL is switched off or not there. Switch on hardware acceleration (or WebGL in software) in the browser's settings, or start ./run --native.",
      "",
    );
  }
  try {
    const measured = measureFrames();
    const ui = await import("./ui.js");
    await ui.default();
    await measured;
    rest();
    await ui.start("model1");
    if (!broken) cover.classList.add("gone");
    canvas.focus();
  } catch (error) {
    if (!broken) {
      fail(
        "The interface could not start",
        "Its files could not be loaded or run. Is the host still running? Start it again with ./run, then restart the interface.",
        `${globalThis.model1_panic ?? ""}\n${error?.stack ?? error}`.trim(),
      );
    }
  }
}

main();
