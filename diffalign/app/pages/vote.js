// The vote page: what a hand, a finger or a key does becomes one vote for the question that was on screen, and is sent until it arrives.
const page = element.querySelector(".vote");
const part = (name) => page.querySelector(name);
const ranking = props.ranking === "true"; // four pictures to be put in order, instead of two to choose from
const pictures = [...page.querySelectorAll(".picture img")].slice(0, ranking ? 4 : 2);
const REST = 250; // milliseconds in which a new pair takes no answer: a double click is meant for the one before
const WAIT = [500, 1000, 2000, 4000, 8000]; // milliseconds between attempts to send
const KEYS = ranking ? { s: "skip" } : { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", x: "both_bad", s: "skip" };
const SECOND = { a: "left", w: "tie", d: "right" };
const NAMES = ranking ? ["Picture 1", "Picture 2", "Picture 3", "Picture 4"] : ["Left", "Right"];
const EMPTY = ["No pictures yet. They appear here by themselves, as they are drawn.", "You have seen all pictures. New ones appear here by themselves, as they are drawn."];
const UNSENT = `diffalign-unsent-${props.ballot}`; // under which the browser keeps votes that the server does not have yet

let questions = []; // the one on screen first
let loaded = new Map(); // question id -> promise of its pictures
let reasons = new Set();
let order = []; // places of the pictures that have a rank, the best one first
let second = ""; // the answer to the further question
let sending = Promise.resolve(); // votes go one after the other, in the order they were given
let unsent = 0;
let counted = null; // votes, as far as the page around it knows
let full = null; // which picture is shown in full size

function remembered(name, make) {
  try {
    const kept = localStorage.getItem(name) ?? make();
    localStorage.setItem(name, kept);
    return kept;
  } catch {
    return null; // the browser keeps nothing
  }
}

const secret = remembered("diffalign-voter", () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join(""));
const pending = () => JSON.parse(remembered(UNSENT, () => "[]") ?? "[]");
function keep(votes) {
  try { localStorage.setItem(UNSENT, JSON.stringify(votes)); } catch { /* the vote is sent all the same */ }
}

// As Gradio's own `server.vote(...)`, but in one session for all voters: the server makes each session a copy of all its pages.
async function ask(call, data) {
  const body = { component_id: props.component, fn_name: call, data: { ...data, secret }, session_hash: props.ballot };
  const answer = await fetch(`${window.gradio_config.root}/gradio_api/component_server`,
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (answer.status === 401) throw new Error("the login has ended; reload the page to log in");
  if (!answer.ok) throw new Error(`it says ${answer.status}`);
  const state = await answer.json();
  if (state.error) throw Object.assign(new Error(state.error), { refused: true });
  return state;
}

function trouble(text) {
  const box = part(".trouble");
  box.textContent = text ?? "";
  box.hidden = !text;
}

function load(question) {
  if (!loaded.has(question.id)) {
    loaded.set(question.id, Promise.all(question.pictures.map(async (file) => {
      const image = new Image();
      image.src = `${window.gradio_config.root}/vote-pictures/${props.ballot}/${file}`;
      await image.decode();
      return image;
    })));
  }
  return loaded.get(question.id);
}

async function show() {
  const [question] = questions;
  page.dataset.state = question ? "asking" : "empty";
  page.dataset.question = question?.id ?? "";
  part(".prompt").textContent = question ? question.prompt : EMPTY[counted ? 1 : 0];
  pictures.forEach((image) => { image.removeAttribute("src"); image.alt = ""; });
  rank([]);
  close();
  if (!question) return;
  try {
    const images = await load(question);
    if (questions[0]?.id !== question.id) return;
    images.forEach((image, side) => {
      pictures[side].src = image.src;
      pictures[side].alt = `${NAMES[side]}${ranking ? "" : " picture"} for: ${question.prompt}`;
      pictures[side].dataset.small = image.naturalWidth < 256;
    });
    setTimeout(() => { if (questions[0]?.id === question.id) page.dataset.open = question.id; }, REST);
    questions.slice(1).forEach((next) => load(next).catch(() => loaded.delete(next.id)));
  } catch (error) {
    loaded.delete(question.id);
    trouble(`The pictures did not come (${error.message}).`);
    setTimeout(refresh, WAIT[2]);
  }
}

function take(state, done) {
  const before = questions[0]?.id;
  questions = state.questions.filter((question) => !done.has(question.id));
  for (const id of loaded.keys()) if (!questions.some((question) => question.id === id)) loaded.delete(id);
  part(".undo").disabled = state.progress.votes === 0 && !state.last;
  part(".second").hidden = ranking || !state.second_question;
  part(".asked").textContent = state.second_question;
  part(".progress").textContent = progress(state.progress);
  if (state.last) part(".last").textContent = last(state.last);
  if (state.progress.votes !== counted) {
    counted = state.progress.votes;
    trigger("counted", { secret }); // for the page around it
  }
  if (questions[0]?.id !== before || page.dataset.state !== "asking") show();
  else questions.slice(1).forEach((next) => load(next).catch(() => loaded.delete(next.id)));
}

function progress({ votes, enough, agreement, repeated }) {
  const more = votes < enough ? `; ${enough - votes} more make a model worth training` : enough ? "; enough to train a model: open the page Train" : "";
  const rate = agreement && `You agree with yourself ${agreement[0].toFixed(2)} (${agreement[1].toFixed(2)} to ${agreement[2].toFixed(2)}, ${repeated} asked twice)`;
  return [`${votes} ${votes === 1 ? "vote" : "votes"}${more}`, rate].filter(Boolean).join(". ");
}

function last({ answer, models }) {
  const names = new Set(models).size > 1 && models.map((model, side) => model && `${NAMES[side].toLowerCase()}: ${model}`).filter(Boolean).join(", ");
  return `Last vote: ${answer.replace("_", " ")}${names ? ` (${names})` : ""}`;
}

const answered = () => new Set(pending().map((vote) => vote.question));

async function send(vote) {
  for (let attempt = 0; ; attempt++) {
    try {
      const state = await ask("vote", vote);
      keep(pending().filter((other) => other.question !== vote.question));
      trouble();
      take(state, answered());
      return;
    } catch (error) {
      if (error.refused) { // it cannot be sent again
        keep(pending().filter((other) => other.question !== vote.question));
        trouble(error.message);
        await refresh();
        return;
      }
      trouble(`The server does not take votes just now (${error.message}). Yours is kept here, and sent when it does.`);
      await new Promise((resolve) => setTimeout(resolve, WAIT[Math.min(attempt, WAIT.length - 1)]));
    }
  }
}

const takesAnswer = () => questions.length > 0 && page.dataset.open === questions[0].id;

function vote(answer, ranks = []) {
  const [question] = questions;
  if (!takesAnswer()) return;
  const cast = { question: question.id, answer, reasons: [...reasons], ranks, second_answer: second };
  reasons.clear();
  second = "";
  page.querySelectorAll("[aria-pressed]").forEach((button) => button.setAttribute("aria-pressed", "false"));
  keep([...pending(), cast]);
  questions = questions.slice(1);
  unsent += 1;
  show();
  sending = sending.then(() => send(cast)).finally(() => { unsent -= 1; page.dataset.unsent = unsent; });
  page.dataset.unsent = unsent;
}

function rank(places) {
  order = places;
  page.querySelectorAll(".rank").forEach((mark, place) => { mark.textContent = order.includes(place) ? order.indexOf(place) + 1 : ""; });
  if (order.length < pictures.length - 1) return;
  const last = pictures.map((_, place) => place).filter((place) => !order.includes(place));
  const whole = [...order, ...last];
  vote("ranking", pictures.map((_, place) => whole.indexOf(place) + 1));
}

function pick(place) {
  if (takesAnswer()) rank(order.includes(place) ? order.filter((other) => other !== place) : [...order, place]);
}

function answerSecond(answer) {
  if (part(".second").hidden) return;
  second = second === answer ? "" : answer;
  page.querySelectorAll(".second button").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.second === second)));
}

async function undo() {
  if (order.length) { rank(order.slice(0, -1)); return; }
  await sending;
  try { take(await ask("undo", {}), new Set()); } catch (error) { trouble(error.message); }
}

async function refresh() {
  try {
    const state = await ask("state", {});
    if (!page.querySelector(".reasons button")) state.reasons.forEach(reason);
    trouble();
    take(state, answered());
  } catch (error) {
    trouble(error.refused ? error.message : `The server does not answer (${error.message}). The page tries again.`);
  }
}

function reason(name, index) {
  const button = document.createElement("button");
  button.textContent = name;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    reasons.has(name) ? reasons.delete(name) : reasons.add(name);
    button.setAttribute("aria-pressed", String(reasons.has(name)));
  });
  part(".reasons").append(button);
}

function close() { full = null; part(".full").hidden = true; }
function open(side) {
  if (!pictures[side].src) return;
  full = side;
  part(".full").hidden = false;
  part(".full img").src = pictures[side].src;
  part(".full img").alt = pictures[side].alt;
  part(".full span").textContent = `${NAMES[side]}. Space or click: the ${ranking ? "next" : "other"} one. Esc: close.`;
}
const flip = () => open(full === null ? 0 : (full + 1) % pictures.length);

function help() {
  const keys = part(".keys");
  keys.hidden = !keys.hidden;
  part(".help").setAttribute("aria-expanded", String(!keys.hidden));
}

page.addEventListener("click", (event) => {
  const answer = event.target.closest("[data-answer]")?.dataset.answer;
  const picture = event.target.closest(".picture");
  const further = event.target.closest("[data-second]")?.dataset.second;
  if (ranking && picture) { if (event.detail <= 1) pick(pictures.indexOf(picture.querySelector("img"))); }
  else if (answer) { if (event.detail <= 1) vote(answer); }
  else if (further) answerSecond(further);
  else if (event.target.closest(".full, .view")) flip();
  else if (event.target.closest(".undo")) undo();
  else if (event.target.closest(".help")) help();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable=true]");
  if (!page.isConnected || !page.offsetParent || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in KEYS) vote(KEYS[key]);
  else if (ranking && /^[1-4]$/.test(key)) pick(Number(key) - 1);
  else if (key in SECOND) answerSecond(SECOND[key]);
  else if (key === "u") undo();
  else if (key === " ") flip();
  else if (key === "?") help();
  else if (key === "Escape") close();
  else if (/^[1-6]$/.test(key)) page.querySelectorAll(".reasons button")[Number(key) - 1]?.click();
  else return;
  event.preventDefault();
});

page.addEventListener("refresh", refresh); // which the page around it asks for

if (ranking) pictures.forEach((image, place) => image.closest("button").setAttribute("aria-label", `${NAMES[place]}: the next in your order`));
page.dataset.unsent = 0;
pending().forEach((cast) => { unsent += 1; sending = sending.then(() => send(cast)).finally(() => { unsent -= 1; page.dataset.unsent = unsent; }); });
sending.then(refresh);
setInterval(() => { if (page.isConnected && questions.length === 0 && !document.hidden) refresh(); }, 3000);
