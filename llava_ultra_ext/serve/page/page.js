// Frames, strip, drop zone and chat of the exam page. Texts are set as texts, never as markup.
// One exam at a time: its key names it at the server, which keeps its frames in memory until they are dropped.

import { address, bindDropping, forget, post, upload } from "./files.js";
import { mountQuestions } from "./questions.js";

export { mountQuestions };

const LANES = ["A", "B"];
const state = { key: "", frames: [], current: 0, lanes: [], looked: [], followed: "", comparing: false };
// looked: of each lane the turn whose scores are shown; undefined: the newest.
let root = null; // the viewer's element
let chat = null; // the chat's
let announceOpened = () => {};

globalThis.examPage = {
  key: () => state.key,
  compare: (on) => {
    state.comparing = on;
    drawChat();
  },
};

const find = (selector) => root.querySelector(selector);

export function mountViewer(element, opened) {
  root = element;
  announceOpened = opened;
  document.documentElement.lang = "zh-CN"; // Gradio takes the browser's language for the page's
  const input = find(".drop input");
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  find(".drop").addEventListener("keydown", (event) => {
    if (event.target === find(".drop") && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      input.click();
    }
  });
  for (const button of root.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => receive(() => post(`exam/example/${button.dataset.example}`)));
  }
  find(".remove").addEventListener("click", () => replaceExam({ exam: "", frames: [], skipped: [], notes: [] }));
  find(".heat-switch input").addEventListener("change", showLarge);
  find(".strip").addEventListener("keydown", moveInStrip);
  bindDropping(find(".drop"), take);
}

export function mountChat(element, read, watch) {
  chat = element;
  document.documentElement.lang = "zh-CN";
  watch(() => takeMarks(read()));
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  document.querySelector("#stop:not([disabled])")?.click();
});

globalThis.addEventListener("pagehide", (event) => {
  if (state.key && !event.persisted) navigator.sendBeacon(address(`exam/drop/${state.key}`));
});

// Files in

function take(files) {
  const seen = files.filter((file) => !file.name.startsWith("."));
  if (seen.length) receive(() => upload(seen));
}

let receiving = 0;

async function receive(ask) {
  const mine = ++receiving; // of two quick choices the later one counts
  say("正在读取图像… Reading the pictures…", "busy");
  try {
    const exam = await ask();
    if (mine !== receiving) return forget(exam.exam);
    say("");
    replaceExam(exam);
  } catch (error) {
    if (mine === receiving) say(error instanceof TypeError ? "连不上服务器，请重试。 The server cannot be reached." : error.message, "error");
  }
}

function replaceExam(exam) {
  forget(state.key);
  Object.assign(state, { key: exam.exam, frames: exam.frames, current: 0, lanes: [], looked: [], followed: "" });
  root.querySelector(".exam").classList.toggle("loaded", exam.frames.length > 0);
  find(".stage").hidden = !exam.frames.length;
  if (!exam.frames.length) say("");
  else if (exam.skipped.length) say(exam.skipped.join("\n"), "error");
  fill(find(".notes"), exam.notes.map((note) => textElement("li", note)));
  drawStrip();
  showLarge();
  drawChat();
  announceOpened();
}

function say(text, kind = "") {
  const message = find(".message");
  message.textContent = text;
  message.className = `message ${kind}`;
  message.hidden = !text;
}

// Conversations

function takeMarks(marks) {
  if (marks?.exam && marks.exam !== state.key) return; // the last words of an exam that was replaced
  state.lanes = marks?.lanes ?? [];
  const chosen = shownTurns().map((turn) => turn?.chosen[0]).find((frame) => frame !== undefined);
  const answer = JSON.stringify(state.lanes.map((lane) => [lane.turns.length, lane.turns.at(-1)?.chosen]));
  if (answer !== state.followed) {
    state.followed = answer; // once an answer; then the reader may look at other frames
    state.looked = [];
    if (chosen !== undefined) state.current = chosen;
    scrollTo(find(".strip").children[state.current]);
  }
  drawChat();
  drawMarks();
  showLarge();
}

const several = () => state.comparing || state.lanes.length > 1;
const shownTurns = () => state.lanes.map((lane, number) => lane.turns[state.looked[number] ?? lane.turns.length - 1]);

function drawChat() {
  if (!chat) return;
  chat.querySelectorAll(".lane").forEach((element, number) => {
    element.hidden = number > 0 && !state.comparing && !state.lanes[number]?.turns.length;
    drawLane(element, number, state.lanes[number]?.turns ?? []);
  });
}

function drawLane(element, number, turns) {
  const atEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 60;
  const old = element.querySelectorAll(".turn");
  old.forEach((item, index) => index >= turns.length && item.remove());
  turns.forEach((turn, index) => {
    const item = old[index] ?? element.appendChild(newTurn(number, index));
    const shown = (state.looked[number] ?? turns.length - 1) === index;
    set(item.querySelector(".question"), turn.question);
    set(item.querySelector(".model"), several() ? `${LANES[number]} · ${turn.model}` : turn.model);
    set(item.querySelector(".answer"), turn.answer || (turn.state === "running" ? "…" : ""));
    set(item.querySelector(".error"), turn.error && `⚠ ${turn.error}`);
    set(item.querySelector(".status"), turn.status);
    item.dataset.state = turn.state;
    item.querySelector(".look").hidden = !turn.scores.length || (turns.length < 2 && !several());
    item.querySelector(".look").setAttribute("aria-pressed", shown);
    item.querySelector(".copy").hidden = !turn.answer;
  });
  element.querySelector(".empty").hidden = turns.length > 0;
  if (atEnd || turns.length > old.length) element.scrollTop = element.scrollHeight;
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

function newTurn(lane, index) {
  const item = textElement("article", "", "turn");
  const foot = textElement("footer", "");
  const look = textElement("button", "看选中帧", "look");
  const copy = textElement("button", "复制", "copy");
  Object.assign(look, { type: "button", title: "显示这次回答的得分和选中的帧 Show its scores and frame" });
  Object.assign(copy, { type: "button", title: "复制回答 Copy the answer" });
  look.addEventListener("click", () => lookAt(lane, index));
  copy.addEventListener("click", () => copyText(copy, state.lanes[lane]?.turns[index]?.answer ?? ""));
  foot.append(textElement("span", "", "status"), look, copy);
  item.append(
    textElement("p", "", "question"),
    textElement("p", "", "model"),
    textElement("p", "", "answer"),
    textElement("p", "", "error"),
    foot,
  );
  return item;
}

function lookAt(lane, index) {
  state.looked[lane] = index;
  const frame = state.lanes[lane]?.turns[index]?.chosen[0];
  drawChat();
  if (frame === undefined) drawMarks();
  else select(frame, false);
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "已复制";
  } catch {
    button.textContent = "无法复制"; // browsers allow it on this machine or over HTTPS only
  }
  setTimeout(() => { button.textContent = "复制"; }, 1500);
}

// Strip and large frame

const textElement = (tag, text, name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });
const fill = (element, children) => element.replaceChildren(...children);

function drawStrip() {
  fill(find(".strip"), state.frames.map((frame, index) => {
    const item = textElement("div", "", "thumb");
    item.setAttribute("role", "option");
    item.append(
      Object.assign(document.createElement("img"), { src: frame.url, alt: "", draggable: false }),
      textElement("span", frame.label, "label"),
      textElement("span", "", "marks"),
    );
    item.addEventListener("click", () => select(index, true));
    return item;
  }));
  drawMarks();
}

function drawMarks() {
  [...find(".strip").children].forEach((item, index) => {
    const told = shownTurns().map((turn, number) => markOf(turn, number, index)).filter(Boolean);
    fill(item.querySelector(".marks"), told.map((mark) => textElement("span", mark.text, mark.chosen ? "score chosen" : "score")));
    const chosen = told.some((mark) => mark.chosen);
    item.classList.toggle("chosen", chosen);
    const current = index === state.current;
    item.setAttribute("aria-selected", current);
    item.tabIndex = current ? 0 : -1;
    const scores = told.map((mark) => mark.text.replace("✓", "选中")).join("，");
    item.setAttribute("aria-label", `${state.frames[index].label}${scores ? `，得分 ${scores}` : ""}`);
  });
}

function markOf(turn, number, frame) {
  const score = turn?.scores[frame];
  if (score === undefined) return null;
  const chosen = turn.chosen.includes(frame);
  const who = state.lanes.length > 1 ? `${LANES[number]} ` : "";
  return { chosen, text: `${chosen ? "✓ " : ""}${who}${score.toFixed(3)}` };
}

function select(index, focus) {
  state.current = Math.min(Math.max(index, 0), state.frames.length - 1);
  drawMarks();
  showLarge();
  const item = find(".strip").children[state.current];
  if (focus) item?.focus({ preventScroll: true });
  scrollTo(item);
}

function scrollTo(item) {
  const strip = find(".strip");
  if (item) strip.scrollTo({ left: item.offsetLeft - strip.offsetLeft - (strip.clientWidth - item.clientWidth) / 2 });
}

function moveInStrip(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  select(Math.min(Math.max(state.current + steps[event.key], 0), state.frames.length - 1), true);
}

function showLarge() {
  const frame = state.frames[state.current];
  if (!frame) return;
  const picture = find(".picture");
  if (picture.src !== frame.url) picture.src = frame.url;
  picture.alt = `图像 ${frame.label}`;
  find(".frame").style.setProperty("--ratio", frame.width / frame.height);
  const chosenBy = shownTurns().map((turn, number) => (turn?.chosen.includes(state.current) ? LANES[number] : "")).filter(Boolean);
  const mark = chosenBy.length ? ` · ✓ 选中${state.lanes.length > 1 ? `（${chosenBy.join("、")}）` : ""}` : "";
  find(".tools output").textContent = `${frame.label}（共 ${state.frames.length} 张）${mark}`;
  showHeat();
}

function showHeat() {
  const turns = shownTurns().filter(Boolean);
  const told = turns.find((turn) => turn.heat[state.current]);
  const any = turns.some((turn) => Object.keys(turn.heat).length);
  const on = Boolean(told) && find(".heat-switch input").checked;
  const heat = find(".heat");
  heat.hidden = !on;
  if (on && heat.src !== told.heat[state.current]) heat.src = told.heat[state.current];
  find(".heat-switch").hidden = !any;
  find(".heat-legend").hidden = !on;
}
