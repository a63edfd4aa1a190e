"use strict";
const byId = id => document.getElementById(id);
const results = byId("results"), said = byId("said"), camera = byId("camera"), video = camera.querySelector("video");
const mostBytes = Number(document.body.dataset.mostBytes), mostPhotos = Number(document.body.dataset.mostPhotos);
const MOST_RESULTS = 40;
const SECONDS = 180;  // longer than any photo waits at the server
const percent = share => `${(100 * share).toFixed(1)} %`;

function say(sentence) {
  said.textContent = sentence;
  said.hidden = !sentence;
}

function card(name) {
  const item = byId("result").content.firstElementChild.cloneNode(true);
  item.querySelector("h3").textContent = name;
  item.querySelector(".remove").addEventListener("click", () => item.remove());
  results.prepend(item);
  while (results.children.length > MOST_RESULTS) results.lastElementChild.remove();
  return item;
}

function fail(item, sentence) {
  const status = item.querySelector(".status");
  status.textContent = sentence;
  status.classList.add("wrong");
}

async function ask(item, address, body, label) {
  let response, answer;
  try {
    response = await fetch(address, {method: "POST", body, signal: AbortSignal.timeout(1000 * SECONDS)});
    answer = await response.json();
  } catch (error) {
    if (response?.status === 503) return fail(item, "The server is busy. Try again in a few seconds.");
    if (error.name === "TimeoutError") return fail(item, "The server did not answer in time. Try again.");
    if (error.name === "NotReadableError") return fail(item, "The file cannot be read. Choose another one.");
    return fail(item, "The server cannot be reached. Is it still running?");
  }
  if (answer.error) return fail(item, answer.error);
  show(item, answer, label);
}

function show(item, answer, label) {
  const picture = item.querySelector(".picture"), box = item.querySelector("input"), bars = item.querySelector(".bars");
  let chosen = answer.top[0];
  const draw = () => {
    [...bars.children].forEach((bar, i) => bar.firstElementChild.setAttribute("aria-pressed", String(answer.top[i] === chosen)));
    picture.classList.toggle("mapped", Boolean(chosen.map) && box.checked);
    if (chosen.map) item.querySelector(".map").src = chosen.map;
    item.querySelector(".caption").textContent =
      chosen.map ? `Where it sees “${chosen.name}”` : `Nothing here speaks for “${chosen.name}”`;
  };
  item.querySelector(".seen").src = answer.image;
  for (const top of answer.top) {
    const bar = byId("bar").content.firstElementChild.cloneNode(true), button = bar.firstElementChild;
    button.querySelector(".name").textContent = top.name;
    button.querySelector("b").textContent = percent(top.probability);
    button.querySelector("i").style.setProperty("--share", top.probability);
    button.disabled = !box;  // without maps there is nothing to choose
    button.addEventListener("click", () => {
      chosen = top;
      draw();
    });
    bars.append(bar);
  }
  if (box) {
    draw();
    box.addEventListener("change", draw);
  }
  if (label !== undefined) {
    const right = label === answer.top[0].name, text = item.querySelector(".label"), verdict = document.createElement("b");
    verdict.textContent = right ? "recognised" : "not recognised";
    text.append(`Labelled “${label}”: `, verdict);
    text.classList.toggle("right", right);
    text.hidden = false;
  }
  item.querySelector(".time").textContent =
    `${answer.read_ms.toFixed(0)} ms to read the photo, ${answer.network_ms.toFixed(0)} ms in the network`;
  item.querySelector(".status").hidden = true;
  item.querySelector(".answer").hidden = false;
}

function send(files) {
  say(files.length > mostPhotos ? `At most ${mostPhotos} photos at once; the first ${mostPhotos} are taken.` : "");
  for (const file of [...files].slice(0, mostPhotos)) {
    const item = card(file.name || "Photo");
    if (file.size > mostBytes)
      fail(item, `The file has ${(file.size / 1e6).toFixed(0)} MB, at most ${mostBytes / 1e6} MB are taken. Make the image smaller.`);
    else ask(item, "classify", file);
  }
}

byId("files").addEventListener("change", event => {
  send(event.target.files);
  event.target.value = "";  // the same file may be chosen again
});
for (const button of document.querySelectorAll("[data-example]"))
  button.addEventListener("click", () => {
    say("");
    ask(card(`Example: ${button.dataset.label}`), `examples/${button.dataset.example}`, undefined, button.dataset.label);
  });
addEventListener("dragover", event => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
addEventListener("dragleave", event => { if (!event.relatedTarget) byId("drop").classList.remove("over"); });
addEventListener("drop", event => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  send(event.dataTransfer.files);
});
addEventListener("paste", event => { if (event.clipboardData.files.length) send(event.clipboardData.files); });

const CAMERA = {
  NotAllowedError: "The camera is not allowed. Allow it in the browser's address bar, or choose a photo.",
  NotFoundError: "There is no camera. Choose a photo.",
  NotReadableError: "The camera is used by another program. Close that, or choose a photo.",
};
let stream;

byId("open-camera").addEventListener("click", async event => {
  const button = event.currentTarget;
  say("");
  closeCamera();
  if (!navigator.mediaDevices)
    return say("Browsers give the camera only to pages over https or from this machine. Choose a photo: phones offer their camera there.");
  button.disabled = true;  // while the browser asks
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment", width: {ideal: 1280}}});
    video.srcObject = stream;
    await video.play();
    camera.hidden = false;
  } catch (error) {
    closeCamera();
    say(CAMERA[error.name] ?? "The camera cannot be used. Choose a photo.");
  }
  button.disabled = false;
});
byId("close-camera").addEventListener("click", closeCamera);
byId("take").addEventListener("click", () => {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob(blob => ask(card("Camera"), "classify", blob), "image/jpeg", 0.95);
});

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = undefined;
  video.srcObject = null;
  camera.hidden = true;
}
