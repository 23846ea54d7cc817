// The page: asks the server to run a prompt as it is dialled, and shows what comes.
import { Controls, without } from "./controls.js";
import { Frontier } from "./frontier.js";
import { HeadMap } from "./map.js";

const one = (id) => document.getElementById(id);
const KEY = "sentinel-key";
const SETTLE_MS = 150; // a dial that is being turned asks once it rests
const SIDES = { chosen: ["chosen"], unpruned: ["unpruned"], both: ["chosen", "unpruned"] };

let about, controls, map, frontier;
let running = null; // the AbortController of the run under way
let ran = false; // from the first run on, whatever is changed is run at once
let settling;
const figures = { chosen: null, unpruned: null };

async function ask(path, body) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(key ? { authorization: `Bearer ${key}` } : {}), ...(body ? { "content-type": "application/json" } : {}) };
  const options = { headers, method: body ? "POST" : "GET" };
  const sent = fetch(path, body ? { ...options, body: JSON.stringify(body), signal: running.signal } : options);
  const response = await sent.catch(unreached);
  if (response.ok) return response;
  if (response.status === 401) one("key").hidden = false;
  const told = await response.json().catch(() => ({ error: { message: `the server said ${response.status}` } }));
  throw Object.assign(new Error(told.error.message), { status: response.status });
}

// Browsers each have words of their own for a connection that is not, or is no more.
function unreached(error) {
  throw error.name === "AbortError" ? error : new Error("The server can’t be reached. Does it still run?");
}

// What the server tells of a run, up to and with "done"; an end before that is an error.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch(unreached);
    if (done) throw new Error("The server ended before the answer did.");
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const event = JSON.parse(part.slice("data: ".length));
      if (event.kind === "done") return;
      yield event;
    }
  }
}

function tell(text, wrong = false) {
  one("status").textContent = text;
  one("status").classList.toggle("wrong", wrong);
}

const rounded = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const megabytes = (value) => `${rounded(value, value < 10 ? 1 : 0)} MB`;

function showFigures() {
  const [mine, whole] = [figures.chosen, figures.unpruned];
  const speed = mine?.tokens_per_s;
  one("speed").textContent = speed ? rounded(speed, 1) : "–";
  const other = whole === mine ? null : whole; // null while one run is both
  const times = speed && other?.tokens_per_s ? speed / other.tokens_per_s : null;
  one("speed-said").textContent = times
    ? `tokens/s, ${rounded(times, 2)}x the unpruned model’s ${rounded(other.tokens_per_s, 1)}`
    : "tokens per second";
  one("memory").textContent = mine?.memory_mb ? megabytes(mine.memory_mb) : "–";
  one("memory-said").textContent = mine?.memory_mb
    ? `held; a token reads ${megabytes(mine.read_mb)}` + (other?.read_mb ? `, unpruned ${megabytes(other.read_mb)}` : "")
    : "weights, keys and values";
}

function showAgreement({ share, of, same }) {
  one("agreement").textContent = share === null ? "–" : `${rounded(100 * share)} %`;
  const alike = same === of ? "both texts are the same" : same ? `the texts part after ${same}` : "the texts part at once";
  one("agreement-said").textContent = `of the unpruned model’s ${of} tokens; ${alike}`;
  const [mine, whole] = [one("chosen").textContent, one("unpruned").textContent];
  let end = 0;
  while (end < mine.length && mine[end] === whole[end]) end += 1;
  if (end === mine.length) return;
  const rest = document.createElement("span");
  rest.className = "differs";
  rest.title = "From here on the two texts differ";
  rest.textContent = mine.slice(end);
  one("chosen").replaceChildren(mine.slice(0, end), rest);
}

function write(event) {
  for (const side of SIDES[event.side]) {
    const place = one(side);
    if (event.kind === "start" || event.anew) place.textContent = "";
    if (event.text) place.append(event.text);
    place.scrollTop = place.scrollHeight;
    place.parentElement.classList.toggle("writing", event.finish === null);
    place.dataset.empty = event.finish === null ? "" : "No text: the model ends at once.";
    figures[side] = event;
  }
  showFigures();
}

function take(event, asked) {
  if (event.kind === "wait") tell(event.for === "another run" ? "Waiting for another run…" : `Opening ${event.for}…`);
  else if (event.kind === "error") throw new Error(event.message);
  else if (event.kind === "agreement") {
    showAgreement(event);
    frontier.point(asked, figures.chosen.tokens_per_s, event.share, asked.masked.length);
  } else if (event.kind === "start" || event.kind === "text") {
    if (event.kind === "start") tell(event.side === "unpruned" ? "The unpruned model answers…" : "The model answers…");
    write(event);
  }
}

function clear() {
  for (const side of SIDES.both) {
    one(side).textContent = "";
    one(side).dataset.empty = "…";
    figures[side] = null;
  }
  one("agreement").textContent = "–";
  one("agreement-said").textContent = "with the unpruned model’s tokens";
  showFigures();
}

function ended() {
  running = null;
  one("run").textContent = "Run";
  for (const writing of document.querySelectorAll(".writing")) writing.classList.remove("writing");
  for (const side of SIDES.both) if (!figures[side]) one(side).dataset.empty = "Press Run.";
}

async function run() {
  running?.abort();
  const mine = (running = new AbortController());
  ran = true;
  clear();
  one("run").textContent = "Stop";
  tell("Asked…");
  const body = {
    ...controls.setting(),
    masked: map.pairs(),
    prompt: one("prompt").value,
    max_tokens: Number(one("tokens").value),
    chat: about.chat && one("chat").checked,
  };
  try {
    for await (const event of events(await ask("page/run", body))) {
      if (mine !== running) return;
      take(event, body);
    }
    if (mine === running) tell("Done.");
  } catch (error) {
    if (mine === running && error.name !== "AbortError") tell(error.message, true);
  } finally {
    if (mine === running) ended();
  }
}

function stop() {
  running?.abort();
  ended();
  tell("Stopped.");
}

function sayDialled(note) {
  const { level, precision } = controls.setting();
  const masked = map.masked.size ? `, ${map.masked.size} masked` : "";
  one("chosen-said").textContent = `Level ${level} ${precision}, ${without(controls.width) || "whole"}${masked}`;
  clearTimeout(settling);
  if (ran) settling = setTimeout(run, SETTLE_MS);
  if (note) tell(note);
}

function turned() {
  const { level, width } = controls;
  const lifted = level !== about.masking && map.masked.size > 0;
  map.show(width.kept, lifted);
  sayDialled(lifted ? `Masked heads are restored: only level ${about.masking} has gates for them.` : "");
}

function masked() {
  let note = "";
  if (controls.level !== about.masking) {
    controls.choose(about.masking);
    note = `Heads are masked at level ${about.masking}, so the level was set to it.`;
  }
  sayDialled(note);
}

async function open() {
  about = await (await ask("page/model")).json();
  one("key").hidden = true;
  one("key-said").textContent = "";
  document.title = `Sentinel: ${about.name}`;
  one("model").textContent = about.name;
  one("unpruned-said").textContent = `Level ${about.unpruned.level} ${about.unpruned.precision}, whole`;
  one("chat-choice").hidden = !about.chat;
  one("tokens").max = about.longest;
  one("tokens").value = Math.min(64, about.longest);
  controls = new Controls(about, turned);
  map = new HeadMap(about, masked);
  for (const id of ["desk", "more"]) one(id).hidden = false;
  frontier = new Frontier(about);
  turned();
  one("restore").addEventListener("click", () => map.restore());
  one("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) stop();
    else run();
  });
  one("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    if (one("ask").reportValidity()) run();
  });
  document.documentElement.dataset.ready = "true";
}

one("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, one("key-text").value);
  start();
});

async function start() {
  try {
    await open();
  } catch (error) {
    one("model").textContent = error.status === 401 ? "a key is needed" : error.message;
    one("key-said").textContent = error.status === 401 && sessionStorage.getItem(KEY) ? "The server knows no such key." : "";
  }
}

start();
