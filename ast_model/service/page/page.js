"use strict";

const FORMATS = { csv: "CSV", "csv-excel": "CSV for Excel", jsonl: "JSON lines", parquet: "Parquet", raven: "Raven", audacity: "Audacity" };
const NUM_TAGS = 10, NUM_LANES = 5, RECORD_S = 60;
const LEGEND = [0, 0.01, 0.1, 0.5, 1];
const $ = id => document.getElementById(id);
let answer = null, address = null, stopAt = null, recorder = null, turn = 0;

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

function say(text, isBad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", isBad);
}

async function call(path, options) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  if (response.ok) return response;
  if (response.status === 401) $("access").hidden = false;
  const found = await response.json().catch(() => ({}));
  throw new Error(found.error || `the service answered ${response.status}`);
}

async function tag(blob, name) {
  const mine = ++turn;  // a second sound may be dropped before the first is tagged
  say(`Tagging ${name} …`);
  const query = new URLSearchParams({ name, top_k: NUM_TAGS, timeline: true, spectrogram: true });
  try {
    const response = await call(`/v1/tag?${query}`, { method: "POST", body: blob });
    const found = await response.json();
    if (mine !== turn) return;
    answer = found;
    show(blob);
    say(`${found.length_s.toFixed(1)} s of sound`);
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

function show(blob) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(blob);
  stopAt = null;
  $("player").src = address;
  $("name").textContent = answer.name;
  $("model").textContent = answer.version ? `${answer.model}, version ${answer.version}` : answer.model;
  $("spectrogram").src = answer.spectrogram;
  $("tags").replaceChildren(...answer.tags.map(tagItem));
  drawTimeline();
  $("result").hidden = false;
}

function tagItem({ label, score }) {
  const item = element("li"), bar = element("span", "bar");
  bar.style.width = `${100 * score}%`;
  item.append(bar, element("span", "", label), element("span", "score", score.toFixed(3)));
  return item;
}

/* A score's colour: the ground at 0. Square root, because scores of rare classes are low. */
const shade = score => `color-mix(in srgb, var(--accent) ${100 * Math.sqrt(score)}%, var(--card))`;

/* All classes that lead in some window, and at least NUM_LANES, the strongest first. */
function chooseLanes(timeline) {
  const best = new Map(), leaders = new Map();
  for (const tag of timeline) {
    best.set(tag.label, Math.max(tag.score, best.get(tag.label) ?? 0));
    if (tag.score > (leaders.get(tag.start_s)?.score ?? -1)) leaders.set(tag.start_s, tag);
  }
  const leading = new Set([...leaders.values()].map(tag => tag.label));
  const ranked = [...best.keys()].sort((a, b) => best.get(b) - best.get(a));
  const others = ranked.filter(label => !leading.has(label)).slice(0, Math.max(0, NUM_LANES - leading.size));
  return ranked.filter(label => leading.has(label) || others.includes(label));
}

/* One lane for each class; the shade shows the score of a segment. */
function drawTimeline() {
  const classes = chooseLanes(answer.timeline);
  const starts = [...new Set(answer.timeline.map(tag => tag.start_s))].sort((a, b) => a - b);
  const next = new Map(starts.map((start, at) => [start, starts[at + 1] ?? answer.length_s]));
  $("timeline").replaceChildren(...classes.map(label => {
    const row = element("div", "row"), lane = element("div", "lane");
    for (const part of answer.timeline.filter(tag => tag.label === label)) lane.append(segment(part, next.get(part.start_s)));
    row.append(element("span", "label", label), lane);
    return row;
  }));
}

function segment({ start_s, end_s, label, score }, next_s) {
  const button = element("button", "segment", label);
  button.type = "button";
  button.style.left = `${100 * start_s / answer.length_s}%`;
  button.style.width = `${100 * (Math.min(end_s, next_s) - start_s) / answer.length_s}%`;
  button.style.backgroundColor = shade(score);
  const what = `${label}, ${start_s.toFixed(1)} to ${end_s.toFixed(1)} s, score ${score.toFixed(2)}`;
  button.setAttribute("aria-label", `Play ${what}`);
  button.title = what;
  button.addEventListener("click", () => play(start_s, end_s, button));
  return button;
}

function play(start_s, end_s, button) {
  document.querySelectorAll(".playing").forEach(each => each.classList.remove("playing"));
  button.classList.add("playing");
  $("player").currentTime = start_s;
  stopAt = end_s;
  $("player").play().catch(() => say("This browser can't play this kind of file.", true));
}

$("player").addEventListener("timeupdate", () => {
  const player = $("player");
  $("cursor").hidden = !answer;
  if (answer) $("cursor").style.left = `${Math.min(100, 100 * player.currentTime / answer.length_s)}%`;
  if (stopAt !== null && player.currentTime >= stopAt) { player.pause(); stopAt = null; }
});
$("player").addEventListener("seeking", () => {
  // After a manual seek beyond the segment, play on.
  if (stopAt !== null && $("player").currentTime > stopAt) stopAt = null;
});

async function download(format) {
  try {
    const body = JSON.stringify({ name: answer.name, tags: answer.timeline });
    const sent = { method: "POST", body, headers: { "Content-Type": "application/json" } };
    const response = await call(`/v1/file?format=${format}`, sent);
    const link = element("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = (response.headers.get("content-disposition") || "").match(/filename="([^"]+)"/)?.[1] || `tags.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    say(`Saved ${link.download}`);
  } catch (error) {
    say(error.message, true);
  }
}

async function record() {
  if (recorder) { recorder.stop(); return; }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = event => parts.push(event.data);
    recorder.onstop = () => {
      stream.getTracks().forEach(track => track.stop());
      const blob = new Blob(parts, { type: recorder.mimeType });
      clearTimeout(recorder.limit);
      recorder = null;
      $("record").textContent = "Record";
      $("record").classList.remove("on");
      tag(blob, "recording");
    };
    recorder.start();
    recorder.limit = setTimeout(() => recorder?.stop(), 1000 * RECORD_S);
    $("record").textContent = "Stop";
    $("record").classList.add("on");
    say("Recording …");
  } catch (error) {
    recorder = null;
    say(`No microphone: ${error.message}. Browsers allow it only on this machine or over https.`, true);
  }
}

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

for (const score of LEGEND) {
  const swatch = element("span", "swatch", String(score));
  swatch.style.setProperty("--shade", shade(score));
  $("legend").append(swatch);
}
for (const [format, title] of Object.entries(FORMATS)) {
  const button = element("button", "", title);
  button.type = "button";
  button.dataset.format = format;
  button.addEventListener("click", () => download(format));
  $("downloads").append(button);
}
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) tag(file, file.name);
  $("file").value = "";  // allow choosing the same file again
});
$("record").addEventListener("click", record);
$("access").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  $("access").hidden = true;
  say("Token saved: choose the sound again.");
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) tag(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
  });
}
