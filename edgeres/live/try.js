// Sends images to the server of this page, one at a time, and shows both answers. Words of others are set as text.
"use strict";
const at = (id) => document.getElementById(id);
const MOST_BYTES = Number(document.body.dataset.mostBytes);
const SHOWN = 50; // answers, the newest first
const CAMERA_PAUSE_MS = 150;
const times = { fp32: [], int8: [] };
let images = 0;
let same = 0;
let waiting = [];
let working = false;
let stream = null;

function el(tag, content, name) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...[content].flat());
  return made;
}

function say(text, failed) {
  at("status").textContent = text;
  at("status").className = failed ? "fail" : "soft";
}

const shown = (ms) => `${ms.toPrecision(3)} ms`;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function column(title, told, name) {
  const rows = told.top.map(({ label, score }) => {
    const row = el("li", [el("span", label), el("b", `${(100 * score).toFixed(1)} %`)]);
    row.style.setProperty("--share", `${100 * score}%`);
    return row;
  });
  return el("div", [el("h3", `${title}, ${shown(told.ms)}`), el("ol", rows)], name);
}

function card(name, answer) {
  const picture = el("img", []);
  picture.src = `data:image/jpeg;base64,${answer.seen}`;
  picture.alt = `${name}, as the networks see it`;
  const verdict = el("span", answer.same ? "same class" : "different classes", answer.same ? "pass" : "fail");
  const made = el("section", [
    el("h2", [`${name}: `, verdict]),
    picture,
    column("FP32", answer.fp32, "fp32"),
    column("INT8", answer.int8, "int8"),
  ], "answer");
  return made;
}

function count(answer) {
  images += 1;
  same += answer.same;
  for (const key of ["fp32", "int8"]) {
    times[key] = [...times[key].slice(-199), answer[key].ms];
    at(`${key}-ms`).textContent = shown(median(times[key]));
  }
  at("same").textContent = `${same} of ${images}`;
  at("tiles").hidden = false;
}

async function classify(content) {
  let reply;
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    reply = await fetch("classify", { method: "POST", body: content, headers });
  } catch {
    throw new Error("edgeres try does not answer; start it again in the terminal");
  }
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

async function work() {
  if (working) return;
  working = true;
  let done = 0;
  const failed = [];
  while (waiting.length) {
    const file = waiting.shift();
    say(`Classifying ${file.name}, ${waiting.length} more to come`);
    try {
      if (file.size > MOST_BYTES) throw new Error(`it has more than ${(MOST_BYTES / 1e6).toFixed(1)} MB`);
      const answer = await classify(file);
      count(answer);
      at("answers").prepend(card(file.name, answer));
      while (at("answers").children.length > SHOWN) at("answers").lastElementChild.remove();
      done += 1;
    } catch (error) {
      failed.push(`${file.name}: ${error.message}`);
    }
  }
  working = false;
  const word = done === 1 ? "image" : "images";
  say([`${done} ${word} classified.`, ...failed].join(" "), failed.length > 0);
}

function add(files) {
  waiting.push(...files);
  work();
}

async function watch() {
  const video = at("video");
  const canvas = document.createElement("canvas");
  while (stream) {
    if (!document.hidden && video.videoWidth) {
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      const picture = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
      try {
        const answer = await classify(picture);
        if (!stream) break;
        count(answer);
        at("live-answer").replaceChildren(card("Camera", answer));
      } catch (error) {
        stop();
        say(error.message, true);
        return;
      }
    }
    await new Promise((done) => setTimeout(done, CAMERA_PAUSE_MS));
  }
}

function stop() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  stream = null;
  at("video").srcObject = null;
  at("live").hidden = true;
  at("camera").setAttribute("aria-pressed", "false");
  at("camera").textContent = "Use the camera";
}

async function toggle() {
  if (stream) {
    stop();
    say("The camera is off.");
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message || error.name}`, true);
    return;
  }
  at("camera").setAttribute("aria-pressed", "true");
  at("camera").textContent = "Stop the camera";
  at("live").hidden = false;
  at("video").srcObject = stream;
  await at("video").play();
  say("The camera is on; each picture is classified as soon as the last one is.");
  watch();
}

at("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
at("camera").addEventListener("click", toggle);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
