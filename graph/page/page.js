// The page: what is selected, asked and hidden, kept in the address, and shown
// in the picture, the panel and the line below.

const $ = (id) => document.getElementById(id);
const num = (n) => n.toLocaleString("en");
const many = (n, noun) => n === 1 ? "1 " + noun : num(n) + " " + (noun.endsWith("x") ? noun + "es" : noun + "s");

const data = JSON.parse($("data").textContent);
const model = new Model(data);

// The state of the view: all that the address holds, but for the camera.
const fresh = () => ({ select: -1, box: -1, depth: 1, only: false, why: [-1, -1], down: new Set(), spread: false, step: -1, owner: -1, mode: "look", view: "picture" });
let state = fresh();
// What follows from it.
let far = null; // distances from what is selected
let path = null; // edges of why
let outage = null;
let lines = []; // those that are asked for: colour, width, pairs of services
let onPath = new Set();

const picture = new Picture($("canvas"), model, {
  dim: () => far !== null || path !== null,
  plain: () => far === null && path === null && outage === null && onPath.size === 0,
  lines: () => lines,
  layerName: (l) => layerNames[l],
  service: (s) => look(s),
  box: (b) => {
    const all = data.boxes[b].services, down = outage ? all.filter((s) => outage.wave[s] < 0 || state.step >= 0 && outage.wave[s] > state.step).length : 0;
    return { dim: dimmed() && !all.some(bright), strong: state.box === b, note: down ? num(down) + " of " + num(all.length) + " down" : "" };
  },
});

// A layer is called a wave where all in it comes back in that wave.
const nothing = model.outage(Array.from({ length: model.n }, (_, i) => i), false);
const layerNames = data.outer.bands.map((_, l) => l);
{
  const waves = layerNames.map(() => new Set());
  data.boxes.forEach((b) => b.services.forEach((s) => { if (nothing.wave[s]) waves[b.layer].add(nothing.wave[s]); }));
  const same = waves.map((w, l) => w.size === 1 && w.has(l + 1));
  layerNames.forEach((l) => { layerNames[l] = (same[l] ? "Wave " : "Layer ") + (l + 1); });
}

const dimmed = () => far !== null || path !== null;
const bright = (s) => path ? onPath.has(s) : far ? !Number.isNaN(far[s]) : true;

// look says how a service is drawn.
function look(s) {
  const c = picture.c, out = { dim: dimmed() && !bright(s) };
  if (outage && outage.lost[s]) {
    const w = outage.wave[s];
    if (w < 0) { out.fill = c.badcard; out.stroke = c.bad; out.note = outage.inCycle[s] ? "stuck in a cycle" : "stuck"; out.noteColor = c.bad; }
    else if (w === 0) { out.note = "assumed to come back"; }
    else if (state.step >= 0 && w > state.step) { out.fill = c.warncard; out.stroke = c.warn; out.note = "down until wave " + w; out.noteColor = c.warn; }
    else { out.fill = c.goodcard; out.stroke = c.good; out.note = "back in wave " + w; out.noteColor = c.good; }
    if (state.down.has(s) && state.down.size < model.n) out.note = "✕ " + out.note;
  }
  if (far && !Number.isNaN(far[s]) && s !== state.select && !out.stroke) out.stroke = far[s] < 0 ? c.needs : c.users;
  if (onPath.has(s)) out.stroke = c.accent;
  if (s === state.select) { out.stroke = c.accent; out.fill = out.fill || c.card; }
  return out;
}

// follow computes what follows from the state, and shows it.
function follow(change) {
  const s = state.select;
  far = s >= 0 ? model.around(s, state.depth) : null;
  const [a, b] = state.why;
  path = a >= 0 && b >= 0 ? model.why(a, b) : null;
  if (path) far = null;
  onPath = new Set(path ? path.flatMap((e) => [model.from(e), data.edges.to[e]]) : a >= 0 ? [a] : []);
  outage = state.down.size ? (change.outage || !outage ? model.outage([...state.down].sort((x, y) => x - y), state.spread) : outage) : null;
  lines = [];
  if (path) lines.push({ color: "accent", width: 2.2, pairs: path.map((e) => [model.from(e), data.edges.to[e]]) });
  else if (far) {
    const needs = [], users = [];
    for (let v = 0; v < model.n; v++) {
      if (Number.isNaN(far[v])) continue;
      // An edge is on the way if it leads one step further from what is selected.
      for (const w of model.out[v]) {
        if (Number.isNaN(far[w])) continue;
        if (far[v] <= 0 && far[w] < 0 && far[w] === far[v] - 1) needs.push([v, w]);
        else if (far[w] >= 0 && far[v] > 0 && far[v] === far[w] + 1) users.push([v, w]);
        else if (v === s || w === s) (v === s ? needs : users).push([v, w]);
      }
    }
    lines.push({ color: "needs", width: 1.8, pairs: needs }, { color: "users", width: 1.8, pairs: users });
  }
  // A component that is looked at shows its shortest cycles.
  if (!path && !far && state.box >= 0) {
    const pairs = data.cycles.filter((c) => data.services.box[c.services[0]] === state.box).flatMap((c) => c.path.map((e) => [e.from, e.to]));
    lines.push({ color: "bad", width: 2.4, pairs });
  }
  const shown = new Uint8Array(model.n);
  let count = 0;
  for (let v = 0; v < model.n; v++) {
    shown[v] = (state.owner < 0 || data.services.owner[v] === state.owner) && (!state.only || !dimmed() || bright(v)) ? 1 : 0;
    count += shown[v];
  }
  state.shownCount = count;
  const changed = shown.some((x, i) => x !== picture.shown[i]);
  picture.shown = shown;
  if (changed || change.open) picture.compute(); else picture.mark();
  if (changed && change.fit !== false) picture.fit();
  panel(); tell(); rows();
  if (!change.quiet) save();
}

// tell says how much is shown of how much.
function tell() {
  let closed = 0, inside = 0;
  data.boxes.forEach((b, i) => { if (b.services.length > 1 && !picture.open.has(i) && picture.visible[i]) { closed++; inside += b.services.filter((s) => picture.shown[s]).length; } });
  const why = [];
  if (state.owner >= 0) why.push("of " + (data.owners[state.owner] || "nobody"));
  if (state.only && far) why.push("around " + model.name[state.select] + (state.depth === Infinity ? "" : ", depth " + state.depth));
  if (state.only && path) why.push("on the path");
  let text = "Showing " + num(state.shownCount) + " of " + many(model.n, "service") + (why.length ? " (" + why.join("; ") + ")" : "");
  if (state.view === "picture") {
    text += " and " + num(picture.drawn) + " of " + many(data.needCount, "need");
    if (closed) text += "; " + num(inside) + " of the services are inside " + many(closed, "closed box");
  }
  $("status").textContent = text + ".";
}

function say(text) { $("live").textContent = text; }

// Elements.
function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const k in attrs) if (k.startsWith("on")) e.addEventListener(k.slice(2), attrs[k]); else if (attrs[k] !== undefined) e.setAttribute(k, attrs[k]);
  e.append(...children.filter((c) => c !== undefined && c !== ""));
  return e;
}
const link = (s) => el("button", { type: "button", class: "link", onclick: () => select(s, true) }, model.name[s]);
const stateWords = { proven: "proven: a recipe recovered as it stands", claimed: "claimed: it has a recipe", unpared: "unpared: its recipe allows everything", unproven: "unproven: declared, without a recipe", unowned: "unowned: nobody declares it" };

// long shows a list's beginning, and the rest when asked.
function long(items, row, limit = 40) {
  const ul = el("ul", { class: "rows" });
  const more = (k) => {
    items.slice(k, k + limit).forEach((x) => ul.append(row(x)));
    const left = items.length - k - limit;
    if (left > 0) { const b = el("li", {}, el("button", { type: "button", onclick: () => { b.remove(); limit = left; more(items.length - left); } }, "Show " + num(left) + " more of " + num(items.length))); ul.append(b); }
  };
  more(0);
  return ul;
}

function panel() {
  const body = $("nowb"), s = state.select;
  if (s >= 0) {
    $("nowh").textContent = model.name[s];
    const info = [], w = nothing.wave[s], box = data.services.box[s];
    info.push(el("p", {}, stateWords[data.services.state[s]] || data.services.state[s], el("br"), "Owner: " + (model.ownerOf(s) || "nobody"), el("br"),
      w > 0 ? "From nothing it is back in wave " + w + "." : w < 0 ? el("span", { class: "bad" }, "From nothing it is stuck" + (nothing.inCycle[s] ? " in a cycle." : ".")) : "Assumed to come back by other means.",
      el("span", { class: "at" }, model.servicePlace(s))));
    const depth = el("select", { id: "depth", onchange: (e) => { state.depth = e.target.value === "all" ? Infinity : Number(e.target.value); follow({}); } },
      ...[1, 2, 3, 4, 5, "all"].map((k) => el("option", { value: k }, String(k))));
    depth.value = state.depth === Infinity ? "all" : String(state.depth);
    const only = el("input", { type: "checkbox", id: "only", onchange: (e) => { state.only = e.target.checked; follow({}); } });
    only.checked = state.only;
    info.push(el("div", { class: "tools" }, el("label", {}, "Depth ", depth), el("label", {}, only, "only these")));
    info.push(el("div", { class: "tools" },
      el("button", { type: "button", onclick: () => toggleDown(s) }, state.down.has(s) ? "Bring up" : "Take down"),
      el("button", { type: "button", onclick: () => { state.why = [s, -1]; state.mode = "why"; $("whybox").open = true; say("Now click what it may need."); follow({}); } }, "Why does it need…"),
      data.boxes[box].services.length > 1 ? el("button", { type: "button", onclick: () => toggleBox(box) }, picture.open.has(box) ? "Close its cycle" : "Open its cycle") : ""));
    if (outage && outage.wave[s] < 0) {
      info.push(el("h3", {}, "It does not come back"));
      const reasons = model.waitsFor(s, outage.up);
      info.push(reasons.length ? long(reasons, (r) => el("li", {}, el("code", {}, data.recipes.label[r.recipe]), r.excluded ? (r.excluded === "failed" ? " failed its last run" : " allows everything") : " waits for ", ...r.missing.flatMap((m, i) => i ? [", ", link(m)] : [link(m)]))) : el("p", {}, "No recipe restores it."));
    }
    const needs = model.edgesFrom(s), users = model.into[s];
    const row = (e, to, other) => el("li", {}, link(other), " ", pathwaysOf(e), data.edges.why[e] ? el("span", { class: "soft" }, " " + data.edges.why[e]) : "", el("span", { class: "at" }, model.edgePlace(e)));
    info.push(el("h3", {}, "Needs " + (needs.length ? many(new Set(needs.map((e) => data.edges.to[e])).size, "service") : "nobody")));
    if (model.ways[s].length > 1) {
      for (const x of model.ways[s]) info.push(el("p", {}, el("code", {}, data.recipes.label[x]), data.recipes.excluded[x] ? el("span", { class: "warn" }, data.recipes.excluded[x] === "failed" ? " failed its last run" : " allows everything") : ""), long(needs.filter((e) => data.edges.recipe[e] === x), (e) => row(e, true, data.edges.to[e])));
    } else info.push(long(needs, (e) => row(e, true, data.edges.to[e])));
    info.push(el("h3", {}, "Needed by " + (users.length ? many(new Set(users.map((e) => model.from(e))).size, "service") : "nobody")), long(users, (e) => row(e, false, model.from(e))));
    body.replaceChildren(...info);
  } else if (state.box >= 0) {
    const b = data.boxes[state.box];
    $("nowh").textContent = b.below;
    body.replaceChildren(el("div", { class: "tools" }, el("button", { type: "button", onclick: () => toggleBox(state.box) }, picture.open.has(state.box) ? "Close" : "Open")), ...data.cycles.filter((c) => data.services.box[c.services[0]] === state.box).flatMap((c) => [el("h3", {}, "A shortest cycle"), sentence(c.path)]), el("h3", {}, many(b.services.length, "service")), long(b.services, (v) => el("li", {}, link(v), el("span", { class: "soft" }, " " + (model.ownerOf(v) || "")))));
  } else {
    $("nowh").textContent = "Nothing is selected";
    body.replaceChildren(el("p", { class: "soft" }, "Left is needed by right. Click a service to see what it needs and what needs it; click a cycle to open it."));
  }
  whyPanel(); outagePanel();
  for (const [name, value] of [["mode", state.mode], ["view", state.view]]) for (const r of document.getElementsByName(name)) r.checked = r.value === value;
  $("owner").value = state.owner < 0 ? "" : String(state.owner);
}

const pathwaysOf = (e) => data.edges.pathways[e].every((p) => data.pathways[p] === "default") ? "" : el("span", { class: "soft" }, "for " + data.edges.pathways[e].map((p) => data.pathways[p]).join(", "));
const sentence = (steps) => el("ol", {}, ...steps.map((e) => el("li", {}, link(e.from), " needs ", link(e.to), e.why ? el("span", { class: "soft" }, " " + e.why) : "", el("span", { class: "at" }, e.at))));

function whyPanel() {
  const [a, b] = state.why, name = (i) => i >= 0 ? model.name[i] : "";
  for (const [id, i] of [["whyfrom", a], ["whyto", b]]) if (document.activeElement !== $(id)) $(id).value = name(i);
  if (a < 0 || b < 0) { $("whyb").replaceChildren(el("p", { class: "soft" }, a < 0 ? "Two clicks, or two names." : "Now what " + name(a) + " may need.")); return; }
  $("whyb").replaceChildren(path ? el("p", {}, name(a) + " needs " + name(b) + " over " + many(path.length, "edge") + ":") : el("p", {}, name(a) + " does not need " + name(b) + ", directly or not."),
    path ? sentence(path.map((e) => ({ from: model.from(e), to: data.edges.to[e], why: data.edges.why[e], at: model.edgePlace(e) }))) : "");
}

function outagePanel() {
  const downs = [...state.down];
  $("spread").checked = state.spread;
  if (downs.length === model.n && model.n > 1) $("downs").replaceChildren(el("li", {}, "Everything is down."));
  else $("downs").replaceChildren(...downs.slice(0, 30).map((s) => el("li", {}, el("button", { type: "button", "aria-label": "Bring up " + model.name[s], onclick: () => toggleDown(s) }, model.name[s] + " ×"))), downs.length > 30 ? el("li", {}, "and " + num(downs.length - 30) + " more") : "");
  $("steprow").hidden = !outage || !outage.waves.length;
  if (!outage) { $("outb").replaceChildren(el("p", { class: "soft" }, "Nothing is down.")); $("outlist").replaceChildren(); return; }
  const lost = outage.lost.reduce((a, x) => a + x, 0), back = outage.waves.reduce((a, w) => a + w.length, 0), rest = lost - back - outage.stuck.length;
  $("outb").replaceChildren(el("p", {}, many(downs.length, "service") + " down" + (lost > downs.length ? ", " + num(lost - downs.length) + " lost with " + (downs.length === 1 ? "it" : "them") : "") + ". ",
    el("span", { class: "good" }, num(back) + " come back in " + many(outage.waves.length, "wave")), rest ? ", " + num(rest) + " are assumed to" : "", ", ",
    el("span", { class: outage.stuck.length ? "bad" : "good" }, num(outage.stuck.length) + " stuck"), "."));
  $("step").max = String(outage.waves.length);
  const step = state.step < 0 ? outage.waves.length : Math.min(state.step, outage.waves.length);
  $("step").value = String(step); $("stepno").textContent = step + " of " + outage.waves.length;
  const groups = outage.waves.map((w, i) => ["Wave " + (i + 1), w]);
  if (outage.stuck.length) groups.unshift(["Stuck in a cycle", outage.stuck.filter((s) => outage.inCycle[s])], ["Stuck behind", outage.stuck.filter((s) => !outage.inCycle[s])]);
  $("outlist").replaceChildren(...groups.filter(([, w]) => w.length).flatMap(([title, w]) => [el("h3", {}, title + ": " + num(w.length)), long(w, (s) => el("li", {}, link(s)), 12)]));
}

function cyclePanel() {
  if (!data.cycles.length) { $("cycleb").replaceChildren(el("p", { class: "good" }, "No cycle.")); return; }
  const kind = (c) => c.waived ? ["soft", "Waived"] : c.blocking ? ["bad", "Blocking"] : ["warn", "Avoidable"];
  $("cycleb").replaceChildren(long(data.cycles, (c) => {
    const box = data.services.box[c.services[0]];
    return el("li", {}, el("p", {}, el("span", { class: kind(c)[0] }, kind(c)[1]), ": " + many(c.services.length, "service") + (c.blocking && c.frees ? "; breaking it frees " + num(c.frees) : "") + " ",
      el("button", { type: "button", onclick: () => { state.select = -1; state.box = box; state.why = [-1, -1]; if (data.boxes[box].inner) picture.open.add(box); follow({ open: true }); picture.reveal(c.services[0], true); } }, "Show")),
    sentence(c.path), c.wayOut.length ? el("p", {}, "The way out: ", el("code", {}, c.wayOut.join(", "))) : "",
    c.break.length ? el("p", {}, "It would break without: " + c.break.map((e) => model.name[e.from] + " needs " + model.name[e.to] + " (" + e.at + ")").join("; ")) : "");
  }, 10));
}

// Deeds.
function select(s, reveal) {
  state.select = s; state.box = -1;
  if (s >= 0 && reveal) { const b = data.services.box[s]; if (data.boxes[b].services.length > 1) picture.open.add(b); }
  if (s >= 0 && !picture.shown[s]) { state.owner = -1; state.only = false; }
  if (state.why[1] >= 0) state.why = [-1, -1];
  follow({ open: reveal });
  if (s < 0) { say("Nothing is selected."); return; }
  if (reveal) picture.reveal(s, picture.scale < 0.6);
  say(describe(s));
}
function describe(s) {
  const o = outage && outage.lost[s] ? outage.wave[s] < 0 ? ", stuck" : outage.wave[s] ? ", back in wave " + outage.wave[s] : "" : "";
  return model.name[s] + ", " + data.services.state[s] + (model.ownerOf(s) ? ", owned by " + model.ownerOf(s) : "") + ", needs " + num(model.out[s].length) + ", needed by " + num(model.inn[s].length) + o;
}
function toggleBox(b) {
  const at = picture.box(b), before = [at[0] * picture.scale + picture.ox, at[1] * picture.scale + picture.oy];
  if (picture.open.has(b)) picture.open.delete(b); else picture.open.add(b);
  state.box = b;
  if (state.select >= 0 && data.services.box[state.select] !== b) state.select = -1;
  follow({ open: true });
  const now = picture.box(b); // it stays where it was on the screen
  picture.pan(before[0] - (now[0] * picture.scale + picture.ox), before[1] - (now[1] * picture.scale + picture.oy));
  say((picture.open.has(b) ? "Opened " : "Closed ") + data.boxes[b].below);
}
function toggleDown(s) {
  if (state.down.has(s)) state.down.delete(s); else state.down.add(s);
  state.step = -1; $("outbox").open = true;
  follow({ outage: true });
  say(model.name[s] + (state.down.has(s) ? " is down. " : " is up. ") + $("outb").textContent);
}
function act(hit, shift) {
  if (!hit) { if (state.mode === "look") { state.box = -1; select(-1); } return; }
  if (hit.service === undefined) { toggleBox(hit.box); return; }
  const s = hit.service;
  if (state.mode === "down") toggleDown(s);
  else if (state.mode === "why" || shift && state.select >= 0) {
    const from = shift && state.mode === "look" ? state.select : state.why[0];
    state.why = from < 0 || state.why[1] >= 0 && !shift ? [s, -1] : [from, s];
    state.select = -1; $("whybox").open = true;
    follow({});
    say($("whyb").textContent);
  } else select(s === state.select ? -1 : s);
}

// The table has the same filters.
let tableReady = null;
function rows() {
  if (state.view !== "table") return;
  tableReady = tableReady || [...document.querySelectorAll("#table tbody tr")];
  tableReady.forEach((tr, i) => { if (tr.hidden === !!picture.shown[i]) tr.hidden = !picture.shown[i]; });
  document.querySelectorAll("#table .part").forEach((part) => { part.hidden = !part.querySelector("tbody tr:not([hidden])"); });
}

// Search.
let hits = [];
function search() {
  const words = $("q").value.toLowerCase().split(/\s+/).filter(Boolean), box = $("hitbox");
  box.hidden = !words.length;
  if (!words.length) { hits = []; return; }
  const score = (i) => { const n = model.name[i].toLowerCase(); return n === words[0] ? 0 : n.startsWith(words[0]) ? 1 : n.includes(words[0]) ? 2 : 3; };
  hits = [];
  for (let i = 0; i < model.n; i++) {
    const t = (model.name[i] + " " + model.ownerOf(i) + " " + data.services.state[i] + " " + data.services.kind[i]).toLowerCase();
    if (words.every((w) => t.includes(w))) hits.push(i);
  }
  hits.sort((a, b) => score(a) - score(b) || a - b);
  $("found").textContent = (hits.length > 50 ? "Showing 50 of " + num(hits.length) : num(hits.length)) + " of " + many(model.n, "service") + (hits.length ? "; Enter takes the first." : " match.");
  $("hits").replaceChildren(...hits.slice(0, 50).map((i) => el("li", {}, el("button", { type: "button", onclick: () => take(i) }, el("span", { class: "mono" }, model.name[i]), el("small", {}, model.ownerOf(i) || "")))));
}
function take(i) {
  $("hitbox").hidden = true; $("q").value = "";
  if (state.view === "table") {
    select(i); rows();
    const cell = tableReady[i].firstElementChild;
    cell.tabIndex = -1; cell.focus(); cell.scrollIntoView({ block: "center" });
    return;
  }
  if (state.mode === "look") select(i, true); else { act({ service: i }); picture.reveal(i, true); }
  $("canvas").focus();
}

function setView(v) {
  state.view = v;
  document.documentElement.classList.toggle("picture", v === "picture");
  document.documentElement.classList.toggle("table", v === "table");
  if (v === "picture") picture.resize();
  follow({});
}

// The address.
let saving = 0;
function save() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    const h = "#" + encode();
    if (h !== location.hash && !(h === "#" && !location.hash)) history.replaceState(null, "", h);
  }, 150);
}
function encode() {
  const p = new URLSearchParams(), names = (key, list) => list.forEach((i) => p.append(key, model.name[i]));
  if (state.select >= 0) p.set("select", model.name[state.select]);
  if (state.box >= 0) p.set("box", model.name[data.boxes[state.box].services[0]]);
  if (state.depth !== 1) p.set("depth", state.depth === Infinity ? "all" : state.depth);
  if (state.only) p.set("only", 1);
  if (state.why[0] >= 0) names("why", state.why.filter((i) => i >= 0));
  if (state.down.size === model.n) p.set("down-all", 1); else names("down", [...state.down]);
  if (state.spread) p.set("spread", 1);
  if (state.step >= 0) p.set("wave", state.step);
  if (state.owner >= 0) p.set("owner", data.owners[state.owner]);
  if (state.mode !== "look") p.set("mode", state.mode);
  if (state.view !== "picture") p.set("view", state.view);
  names("open", [...picture.open].map((b) => data.boxes[b].services[0]));
  if (picture.placed) p.set("at", picture.camera().map((x, i) => i < 2 ? Math.round(x) : x.toPrecision(4)).join(","));
  return p.toString();
}
function decode() {
  const p = new URLSearchParams(location.hash.slice(1)), all = (k) => p.getAll(k).map((n) => model.find(n)).filter((i) => i >= 0);
  const missing = ["select", "box", "why", "down", "open"].flatMap((k) => p.getAll(k)).filter((n) => model.find(n) < 0);
  state = fresh();
  state.select = p.has("select") ? model.find(p.get("select")) : -1;
  const boxed = p.has("box") ? model.find(p.get("box")) : -1;
  if (boxed >= 0 && state.select < 0) state.box = data.services.box[boxed];
  const depth = p.get("depth");
  state.depth = depth === "all" ? Infinity : Math.min(99, Math.max(1, parseInt(depth, 10) || 1));
  state.only = p.has("only");
  const why = all("why");
  if (why.length) state.why = [why[0], why.length > 1 ? why[1] : -1];
  state.down = new Set(p.has("down-all") ? model.name.keys() : all("down"));
  state.spread = p.has("spread");
  const wave = parseInt(p.get("wave"), 10);
  state.step = wave >= 0 ? wave : -1;
  state.owner = p.has("owner") ? data.owners.indexOf(p.get("owner")) : -1;
  if (["look", "why", "down"].includes(p.get("mode"))) state.mode = p.get("mode");
  state.view = p.get("view") === "table" ? "table" : "picture";
  document.documentElement.classList.toggle("picture", state.view === "picture");
  document.documentElement.classList.toggle("table", state.view === "table");
  picture.open = new Set(all("open").map((s) => data.services.box[s]).filter((b) => data.boxes[b].inner));
  if (state.why[0] >= 0) $("whybox").open = true;
  if (state.down.size) $("outbox").open = true;
  picture.placed = false;
  follow({ open: true, outage: true, quiet: true, fit: false });
  const at = (p.get("at") || "").split(",").map(Number);
  if (at.length === 3 && at.every(Number.isFinite) && at[2] > 0) picture.setCamera([at[0], at[1], Math.min(4, Math.max(0.004, at[2]))]);
  else picture.fit();
  if (missing.length) say("Not in this graph: " + missing.join(", "));
}

// Hands.
const canvas = $("canvas");
let drag = null;
const fingers = new Map(); // pointers that are down; two of them zoom
const place = (e) => { const r = canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
const moved = () => { picture.placed = true; save(); };
canvas.addEventListener("pointerdown", (e) => { fingers.set(e.pointerId, place(e)); if (fingers.size > 1) { if (drag) drag.far = true; } else if (e.button === 0) { drag = { at: place(e), from: place(e), far: false }; canvas.setPointerCapture(e.pointerId); } });
canvas.addEventListener("pointermove", (e) => {
  const [x, y] = place(e);
  if (fingers.size === 2 && fingers.has(e.pointerId)) {
    const other = [...fingers].find(([id]) => id !== e.pointerId)[1], was = fingers.get(e.pointerId), apart = (p) => Math.max(Math.hypot(p[0] - other[0], p[1] - other[1]), 1);
    picture.zoom(apart([x, y]) / apart(was), (x + other[0]) / 2, (y + other[1]) / 2);
    fingers.set(e.pointerId, [x, y]);
    if (drag) drag.at = [x, y];
    return;
  }
  if (fingers.has(e.pointerId)) fingers.set(e.pointerId, [x, y]);
  if (drag) {
    if (Math.hypot(x - drag.from[0], y - drag.from[1]) > 4) { drag.far = true; canvas.classList.add("drag"); }
    if (drag.far) { picture.pan(x - drag.at[0], y - drag.at[1]); drag.at = [x, y]; $("tip").hidden = true; }
    return;
  }
  const hit = picture.hit(x, y), tip = $("tip");
  canvas.classList.toggle("point", !!hit);
  tip.hidden = !hit;
  if (hit) {
    tip.textContent = hit.service !== undefined ? describe(hit.service) : data.boxes[hit.box].below + ": " + data.boxes[hit.box].name;
    tip.style.left = Math.min(x + 14, picture.w - 200) + "px"; tip.style.top = Math.min(y + 16, picture.h - 40) + "px";
  }
});
canvas.addEventListener("pointerup", (e) => { fingers.delete(e.pointerId); const d = drag; drag = null; canvas.classList.remove("drag"); if (d && d.far) moved(); else if (d) act(picture.hit(...place(e)), e.shiftKey); });
canvas.addEventListener("pointercancel", (e) => { fingers.delete(e.pointerId); drag = null; canvas.classList.remove("drag"); });
canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
canvas.addEventListener("wheel", (e) => {
  e.preventDefault();
  const unit = e.deltaMode === 1 ? 16 : e.deltaMode === 2 ? 400 : 1;
  if (e.shiftKey) picture.pan(-(e.deltaX || e.deltaY) * unit, 0); else picture.zoom(Math.exp(-e.deltaY * unit * 0.0016), ...place(e));
  moved();
}, { passive: false });
$("in").onclick = () => { picture.zoom(1.3); moved(); };
$("out").onclick = () => { picture.zoom(1 / 1.3); moved(); };
$("fit").onclick = () => { picture.fit(); picture.placed = false; save(); };

// Keys move between services: sideways along needs, up and down in a column.
function step(key) {
  let s = state.select;
  const order = (list) => list.slice().sort((a, b) => picture.cell(a)[1] - picture.cell(b)[1] || picture.cell(a)[0] - picture.cell(b)[0]);
  if (s < 0) {
    const b = state.box >= 0 ? state.box : -1;
    const all = b >= 0 ? data.boxes[b].services : Array.from(model.name.keys()).filter((v) => picture.shown[v]);
    let best = -1;
    for (const v of all) if (best < 0 || picture.cell(v)[0] < picture.cell(best)[0] || picture.cell(v)[0] === picture.cell(best)[0] && picture.cell(v)[1] < picture.cell(best)[1]) best = v;
    if (best >= 0) select(best, true);
    return;
  }
  const here = picture.cell(s);
  let next = -1;
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const near = (key === "ArrowLeft" ? model.out[s] : model.inn[s]).filter((v) => v !== s && picture.shown[v]);
    next = near.length ? near.reduce((a, v) => Math.abs(picture.cell(v)[1] - here[1]) < Math.abs(picture.cell(a)[1] - here[1]) ? v : a) : -1;
    if (next < 0) say(model.name[s] + (key === "ArrowLeft" ? " needs nobody" : " is needed by nobody") + (near.length ? "" : "."));
  } else {
    const box = data.services.box[s], inner = picture.inner.has(box), all = inner ? data.boxes[box].services : [];
    if (!inner) data.boxes.forEach((b, i) => { if (picture.visible[i] && data.outer.col[i] === data.outer.col[box]) all.push(b.services[0]); });
    const column = order(all.filter((v) => picture.cell(v)[0] === here[0])), at = column.findIndex((v) => v === s || data.services.box[v] === box && !inner);
    next = column[at + (key === "ArrowDown" ? 1 : -1)] ?? -1;
  }
  if (next >= 0) select(next, true);
}
canvas.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const pan = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[e.key], s = state.select;
  if (pan && e.shiftKey) { picture.pan(...pan); moved(); }
  else if (pan) step(e.key);
  else if (e.key === "Enter" || e.key === " ") { if (s >= 0 && state.mode !== "look") { act({ service: s }); state.select = s; follow({}); } else if (s >= 0) { $("nowh").scrollIntoView(); say(describe(s)); } else if (state.box >= 0) toggleBox(state.box); else step("ArrowDown"); }
  else if (e.key === "o" || e.key === "O") { const b = s >= 0 ? data.services.box[s] : state.box; if (b >= 0 && data.boxes[b].inner) toggleBox(b); else say("It is in no cycle with others."); }
  else if (e.key === "Escape") { state.box = -1; state.why = [-1, -1]; select(-1); }
  else if (e.key === "+" || e.key === "=") { picture.zoom(1.3); moved(); }
  else if (e.key === "-") { picture.zoom(1 / 1.3); moved(); }
  else if (e.key === "0") { picture.fit(); picture.placed = false; save(); }
  else return;
  e.preventDefault();
});
document.addEventListener("keydown", (e) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
  if (e.key === "/" && !typing) { e.preventDefault(); $("q").focus(); }
  if (e.key === "Escape" && e.target.closest(".find")) { $("hitbox").hidden = true; $("q").focus(); }
});
document.addEventListener("click", (e) => { if (!e.target.closest(".find")) $("hitbox").hidden = true; });

// Controls.
$("q").addEventListener("input", search);
$("q").addEventListener("focus", search);
$("q").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && hits.length) { e.preventDefault(); take(hits[0]); }
  if (e.key === "ArrowDown" && hits.length) { e.preventDefault(); $("hits").querySelector("button").focus(); }
});
$("hits").addEventListener("keydown", (e) => {
  const li = e.target.closest("li"), to = e.key === "ArrowDown" ? li.nextElementSibling : e.key === "ArrowUp" ? li.previousElementSibling : null;
  if (e.key === "ArrowDown" || e.key === "ArrowUp") { e.preventDefault(); (to ? to.firstElementChild : $("q")).focus(); }
});
for (const r of document.getElementsByName("mode")) r.addEventListener("change", () => { state.mode = r.value; if (r.value === "why") $("whybox").open = true; if (r.value === "down") $("outbox").open = true; follow({}); });
for (const r of document.getElementsByName("view")) r.addEventListener("change", () => setView(r.value));
$("owner").addEventListener("change", (e) => { state.owner = e.target.value === "" ? -1 : Number(e.target.value); follow({}); });
for (const id of ["whyfrom", "whyto"]) $(id).addEventListener("change", () => { state.why = [model.find($("whyfrom").value.trim()), model.find($("whyto").value.trim())]; state.select = -1; follow({}); });
$("whyclear").onclick = () => { state.why = [-1, -1]; $("whyfrom").value = $("whyto").value = ""; follow({}); };
const addDown = () => { const s = model.find($("downname").value.trim()); if (s >= 0) { $("downname").value = ""; if (!state.down.has(s)) toggleDown(s); } else say("There is no service of that name."); };
$("downadd").onclick = addDown;
$("downname").addEventListener("keydown", (e) => { if (e.key === "Enter") addDown(); });
$("spread").addEventListener("change", (e) => { state.spread = e.target.checked; state.step = -1; follow({ outage: true }); });
$("downall").onclick = () => { state.down = new Set(model.name.keys()); state.step = -1; follow({ outage: true }); };
$("downclear").onclick = () => { state.down = new Set(); state.step = -1; follow({ outage: true }); };
$("step").addEventListener("input", (e) => { state.step = Number(e.target.value); follow({ quiet: false }); });
addEventListener("hashchange", decode);
addEventListener("beforeprint", () => picture.resize(3));
addEventListener("afterprint", () => picture.resize());

data.owners.map((o, i) => [o, i]).sort((a, b) => a[0] < b[0] ? -1 : 1).forEach(([o, i]) => $("owner").append(el("option", { value: i }, o || "nobody")));
$("names").append(...(model.n <= 3000 ? model.name.map((n) => el("option", { value: n })) : []));
cyclePanel();
picture.resize();
decode();
// For tests, and for whoever wants to ask more.
globalThis.bj = { model, picture, encode, get state() { return state; }, get outage() { return outage; }, get path() { return path; } };
document.documentElement.dataset.ready = String(Math.round(performance.now()));
