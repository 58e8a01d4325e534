"""The page that raters see: one file, nothing fetched, answers kept in the browser until they are saved."""

# {{data}} is replaced by JSON with every "<" spelled out.
PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Which answer is better?</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --accent: #2f6fdd; }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
  header { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap; }
  header h1 { font-size: 1.15rem; margin: 0; flex: 1 1 14rem; }
  progress { width: 100%; accent-color: var(--accent); height: .5rem; }
  .images { display: flex; gap: .5rem; justify-content: center; flex-wrap: wrap; }
  .images img { max-width: 100%; max-height: 45vh; border-radius: .4rem; }
  #question { font-weight: 600; font-size: 1.1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
  .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
  .answer { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
  .answer div { white-space: pre-wrap; overflow-wrap: anywhere; }
  .answer h2 { font-size: .85rem; margin: 0 0 .35rem; opacity: .7; font-weight: 600; }
  .choices { position: sticky; bottom: 0; display: grid; grid-template-columns: 1fr 1fr 1fr; gap: .5rem;
    padding: .75rem 0; background: Canvas; }
  button { font: inherit; padding: .7rem .5rem; border: 1px solid var(--line); border-radius: .5rem;
    background: transparent; color: inherit; cursor: pointer; }
  button:focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
  button[aria-pressed="true"], button.main { background: var(--accent); color: #fff; border-color: var(--accent); }
  nav { display: flex; gap: .5rem; justify-content: space-between; }
  .quiet { opacity: .75; font-size: .9rem; }
  @media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } .images img { max-height: 32vh; } }
</style>
</head>
<body>
<header>
  <h1>Which answer is better?</h1>
  <span id="count" aria-live="polite"></span>
  <button id="save" class="main" type="button">Save answers</button>
</header>
<progress id="bar" value="0" max="1" aria-label="answered"></progress>
<p class="quiet">Look at the image first, and mind what an answer says that is not there.
Keys: 1 for A, 2 for equal, 3 for B, ← → to go back and forth. Answers are kept in this browser until you save them.</p>
<main>
  <div class="images" id="images"></div>
  <p id="question"></p>
  <div class="pair">
    <section class="answer"><h2>A</h2><div id="left"></div></section>
    <section class="answer"><h2>B</h2><div id="right"></div></section>
  </div>
  <div class="choices" role="group" aria-label="Your choice">
    <button type="button" data-choice="left" aria-pressed="false">A is better</button>
    <button type="button" data-choice="tie" aria-pressed="false">Equal</button>
    <button type="button" data-choice="right" aria-pressed="false">B is better</button>
  </div>
  <nav><button type="button" id="back">← Back</button><button type="button" id="next">Next →</button></nav>
</main>
<script type="application/json" id="data">{{data}}</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const store = "mdpo-sheet-" + data.sheet;
const element = (id) => document.getElementById(id);
let answers = {};
let saved = true;
try { answers = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { answers = {}; }
let position = Math.max(0, data.items.findIndex((item) => !(item.id in answers)));

function show() {
  const item = data.items[position];
  element("question").textContent = item.question;
  element("left").textContent = item.left || "(no answer)";
  element("right").textContent = item.right || "(no answer)";
  element("images").replaceChildren(...item.images.map((source) => {
    const image = document.createElement("img");
    image.src = source;
    image.alt = "the image that the question is about";
    return image;
  }));
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.setAttribute("aria-pressed", String(answers[item.id] === button.dataset.choice));
  }
  const done = Object.keys(answers).length;
  element("count").textContent = `question ${position + 1} of ${data.items.length}, ${done} answered`;
  element("bar").value = done / data.items.length;
  element("back").disabled = position === 0;
  element("next").disabled = position === data.items.length - 1;
}
function move(step) {
  position = Math.min(data.items.length - 1, Math.max(0, position + step));
  show();
  window.scrollTo(0, 0);
}
function choose(choice) {
  answers[data.items[position].id] = choice;
  saved = false;
  // A private window may refuse to store; the warning before leaving still holds.
  try { localStorage.setItem(store, JSON.stringify(answers)); } catch (error) { /* shown by the warning */ }
  move(1);
}
function save() {
  const content = { schema: data.schema, sheet: data.sheet, answers };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = `answers-${data.sheet}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
}
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
element("back").addEventListener("click", () => move(-1));
element("next").addEventListener("click", () => move(1));
element("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = { 1: "left", 2: "tie", 3: "right" }[event.key];
  if (choice) choose(choice);
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
});
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
show();
</script>
</body>
</html>
"""
