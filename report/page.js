"use strict";
// Builds the gallery from the data of the page. Texts are only ever set as text, never as HTML:
// they were written by a model.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 12; // groups that are shown at a time
const TAG = /<\/?[A-Za-z_]+>/g;

function make(kind, className, text) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function picture(number) {
  const image = make("img");
  image.src = data.images[number];
  image.alt = "image of the question";
  return image;
}

function options(select, values, all) {
  if (all) select.append(new Option("all", ""));
  for (const value of values) select.append(new Option(value, value));
}

const unique = (values) => [...new Set(values)];

// --- Tokens ------------------------------------------------------------------------------------

// True for each token that touches a tag. A tag may be one token, or three: <, think, >.
function touchesTag(tokens, separator) {
  const starts = [];
  let text = "";
  for (const token of tokens) {
    starts.push(text.length);
    text += token + separator;
  }
  const inside = new Array(text.length + 1).fill(false);
  for (const match of text.matchAll(TAG)) inside.fill(true, match.index, match.index + match[0].length);
  return tokens.map((token, t) => {
    for (let i = starts[t]; i < starts[t] + token.length; i++) if (inside[i]) return true;
    return false;
  });
}

// Words of a word-level vocabulary come without blanks, tokens of others with theirs.
function separatorOf(tokens) {
  return tokens.slice(1).some((token) => /^\s/.test(token)) ? "" : " ";
}

function shade(advantage) {
  if (!advantage) return "";
  const strength = Math.min(0.6, 0.12 + 0.2 * Math.abs(advantage));
  return advantage > 0 ? `rgba(30,150,70,${strength})` : `rgba(210,50,50,${strength})`;
}

function tokenLine(completion) {
  const line = make("div", "tokens");
  const separator = separatorOf(completion.tokens);
  const isTag = touchesTag(completion.tokens, separator);
  const clipped = new Set(completion.clipped);
  completion.tokens.forEach((token, t) => {
    if (completion.left_out && t === completion.left_out.after)
      line.append(make("em", "small", ` … ${completion.left_out.count} tokens … `));
    const span = make("span", (isTag[t] ? "tag " : "") + (clipped.has(t) ? "clipped" : ""), token);
    span.style.background = shade(completion.advantage);
    if (completion.logp) {
      const ratio = Math.exp(completion.logp[t] - completion.logp_sampler[t]);
      span.dataset.tip = `logp ${completion.logp[t].toFixed(3)}   logp_sampler ` +
        `${completion.logp_sampler[t].toFixed(3)}\nratio ${ratio.toFixed(3)}   ` +
        (clipped.has(t) ? "clipped" : "not clipped") + `\nadvantage ${completion.advantage.toFixed(3)}`;
    }
    line.append(span);
    if (separator) line.append(separator);
  });
  return line;
}

// A response as text, its tags coloured.
function tagged(text) {
  const line = make("div", "tokens");
  let end = 0;
  for (const match of text.matchAll(TAG)) {
    line.append(text.slice(end, match.index), make("span", "tag", match[0]));
    end = match.index + match[0].length;
  }
  line.append(text.slice(end));
  return line;
}

const tip = document.getElementById("tip");
function showTip(event) {
  const text = event.target.dataset ? event.target.dataset.tip : undefined;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const box = event.target.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (box.bottom + tip.offsetHeight + 8 < window.innerHeight
    ? box.bottom + 4 : box.top - tip.offsetHeight - 4) + "px";
}
document.addEventListener("mouseover", showTip);
document.addEventListener("click", showTip);
document.addEventListener("scroll", () => { tip.hidden = true; });

// --- Rollouts ----------------------------------------------------------------------------------

function score(completion) {
  if (completion.right === null || completion.right === undefined) return ["not graded", "small"];
  return completion.right === 1 ? ["right", "right"] : ["wrong", "wrong"];
}

function completionRow(completion) {
  const row = make("div", "completion");
  row.append(tokenLine(completion));
  const facts = make("div", "small");
  const [verdict, className] = score(completion);
  facts.append(make("span", className, verdict), ` (${completion.reason})`, make("br"));
  const parts = Object.entries(completion.rewards).map(([name, value]) => `${name} ${value ?? "-"}`);
  facts.append(`${parts.join(", ")}; R ${completion.total ?? "-"}, A ${completion.advantage.toFixed(3)}`);
  if (completion.cut) facts.append("; cut off");
  row.append(facts);
  return row;
}

function head(images, question, lines) {
  const top = make("div", "head");
  for (const number of images) top.append(picture(number));
  const words = make("div");
  words.append(make("div", "question", question));
  for (const line of lines) if (line) words.append(make("div", "small", line));
  top.append(words);
  return top;
}

function groupCard(group, completions) {
  const card = make("article", "group");
  const mean = group.mean === null ? "no reward" : `group mean ${group.mean}`;
  card.append(head(group.images, group.question, [
    group.instruction, `gold ${group.gold}; kind ${group.kind}`, `${group.run}, step ${group.step}; ${mean}`,
  ]));
  for (const completion of completions) card.append(completionRow(completion));
  return card;
}

function setUpRollouts() {
  const form = document.getElementById("filters");
  if (!form) return;
  const list = document.getElementById("groups");
  const more = document.getElementById("more");
  options(form.elements.run, unique(data.groups.map((g) => g.run)), true);
  options(form.elements.step, unique(data.groups.map((g) => g.step)).sort((a, b) => a - b), true);
  options(form.elements.kind, unique(data.groups.map((g) => g.kind)), true);
  let shown = PAGE;

  const same = (wanted, value) => wanted === "" || wanted === String(value);
  const update = () => {
    const chosen = Object.fromEntries(new FormData(form));
    const found = [];
    for (const group of data.groups) {
      if (!same(chosen.run, group.run) || !same(chosen.step, group.step)) continue;
      if (!same(chosen.kind, group.kind)) continue;
      const completions = group.completions.filter(
        (c) => same(chosen.right, c.right) && same(chosen.format, c.in_format));
      if (completions.length) found.push([group, completions]);
    }
    const cards = found.slice(0, shown).map(([group, completions]) => groupCard(group, completions));
    list.replaceChildren(...cards);
    const count = found.reduce((sum, [, completions]) => sum + completions.length, 0);
    document.getElementById("count").textContent = `${found.length} groups, ${count} completions`;
    more.hidden = found.length <= shown;
  };
  form.addEventListener("change", () => { shown = PAGE; update(); });
  more.addEventListener("click", () => { shown += PAGE; update(); });
  update();
}

// --- Pairs, and one question from base to final --------------------------------------------------

const TAGS = ["<think>", "</think>", "<answer>", "</answer>"];

function pairCard(pair) {
  const card = make("article", "pair");
  card.append(head(pair.images, pair.question, [`gold ${pair.gold}; ${pair.run}`]));
  const sides = make("div", "sides");
  const chosen = make("div"), rejected = make("div");
  chosen.append(make("div", "right", "chosen"), tagged(pair.chosen));
  const title = make("div", "wrong", "rejected ");
  title.append(make("span", "badge", pair.corruption));
  rejected.append(title, tagged(pair.rejected));
  const missing = TAGS.filter((tag) => pair.chosen.includes(tag) && !pair.rejected.includes(tag));
  if (missing.length) {
    const line = make("div", "small", "lacks ");
    for (const tag of missing) line.append(make("s", "tag", tag), " ");
    rejected.append(line);
  }
  sides.append(chosen, rejected);
  card.append(sides);
  return card;
}

function setUpPairs() {
  const form = document.getElementById("pair-filters");
  if (!form) return;
  options(form.elements.corruption, unique(data.pairs.map((p) => p.corruption)), true);
  const update = () => {
    const wanted = form.elements.corruption.value;
    const found = data.pairs.filter((p) => wanted === "" || p.corruption === wanted);
    document.getElementById("pair-list").replaceChildren(...found.slice(0, PAGE).map(pairCard));
    document.getElementById("pair-count").textContent = `${Math.min(PAGE, found.length)} of ${found.length} pairs`;
  };
  form.addEventListener("change", update);
  update();
}

function setUpJourneys() {
  const form = document.getElementById("journey-filters");
  if (!form) return;
  const select = form.elements.question;
  data.journeys.forEach((journey, i) => select.append(new Option(journey.question.slice(0, 90), i)));
  const update = () => {
    const journey = data.journeys[select.value];
    const card = make("article", "group");
    card.append(head(journey.images, journey.question, [`gold ${journey.gold}; kind ${journey.kind}`]));
    for (const answer of journey.answers) {
      const row = make("div", "completion");
      row.append(tagged(answer.response));
      const facts = make("div", "small");
      const [verdict, className] = score({ right: answer.score });
      facts.append(make("strong", "", answer.model + ": "), make("span", className, verdict),
        ` (${answer.reason}), format ${answer.in_format ? "obeyed" : "not obeyed"}`);
      row.append(facts);
      card.append(row);
    }
    document.getElementById("journey").replaceChildren(card);
  };
  form.addEventListener("change", update);
  update();
}

setUpRollouts();
setUpPairs();
setUpJourneys();
