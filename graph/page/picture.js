// The picture on a canvas. Places are columns and rows that were computed once;
// here they become pixels, in which hidden columns and rows have no size and an
// open component has that of what is inside.

class Picture {
  constructor(canvas, model, look) {
    this.canvas = canvas;
    this.m = model;
    this.d = model.d;
    this.z = this.d.sizes;
    this.look = look; // what to draw of services: see service() below
    this.open = new Set();
    this.member = new Int32Array(model.n); // of a service: its place in its box
    for (const b of this.d.boxes) b.services.forEach((s, i) => { this.member[s] = i; });
    this.shown = new Uint8Array(model.n).fill(1);
    this.scale = 1; this.ox = 0; this.oy = 0;
    this.layer = null; // edges as drawn while there is time, of large graphs
    this.moved = 0;
    this.colors();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.colors(); this.stale(); });
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.compute();
  }

  colors() {
    const css = getComputedStyle(document.documentElement), c = {};
    for (const k of ["paper", "band", "card", "ink", "soft", "line", "hair", "edge", "accent", "needs", "users", "good", "bad", "badcard", "warn", "warncard", "goodcard"]) c[k] = css.getPropertyValue("--" + k).trim();
    this.c = c;
    this.ownerColors = null;
    this.mono = css.getPropertyValue("--mono").trim();
    this.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  }

  ownerColor(s) {
    const dark = this.dark;
    this.ownerColors = this.ownerColors || this.d.owners.map((_, o) => `hsl(${(o * 137.508) % 360} ${dark ? "42% 60%" : "48% 46%"})`);
    return this.ownerColors[this.d.services.owner[s]];
  }

  // resize paints at once: a canvas that has another size is empty, and the
  // next frame is too late for whoever looks at this one.
  resize(factor) {
    const r = this.canvas.getBoundingClientRect(), k = factor || devicePixelRatio || 1;
    if (!r.width || !r.height) return;
    this.w = r.width; this.h = r.height; this.k = k;
    this.canvas.width = Math.round(r.width * k); this.canvas.height = Math.round(r.height * k);
    if (!this.placed) this.fit();
    this.layer = null;
    this.paint();
  }

  // measure turns a sheet's columns and rows into pixels; width and height are
  // those of boxes that are larger than a cell, and visible tells which count.
  measure(sheet, visible, width, height) {
    const z = this.z, cols = new Uint8Array(sheet.cols), rows = new Uint8Array(sheet.rows), gaps = new Uint8Array(sheet.rows + 1);
    const w = Float64Array.from(sheet.width), h = new Float64Array(sheet.rows).fill(z.Cell);
    for (let b = 0; b < sheet.col.length; b++) {
      if (!visible(b)) continue;
      cols[sheet.col[b]] = rows[sheet.row[b]] = 1;
      if (sheet.gap[b] >= 0) gaps[sheet.gap[b]] = 1;
      const bw = width(b);
      if (bw) { w[sheet.col[b]] = Math.max(w[sheet.col[b]], bw); h[sheet.row[b]] = Math.max(h[sheet.row[b]], height(b)); }
    }
    const out = { x: new Float64Array(sheet.cols), right: new Float64Array(sheet.cols), y: new Float64Array(sheet.rows), gapY: new Float64Array(sheet.rows + 1), cols };
    let x = sheet.gut[0] || 0, y = 0;
    for (let c = 0; c < sheet.cols; c++) {
      out.x[c] = x;
      out.right[c] = x + (cols[c] ? w[c] : 0);
      if (cols[c]) x += w[c] + sheet.gut[c + 1];
    }
    for (let r = 0; r <= sheet.rows; r++) {
      out.gapY[r] = y;
      if (gaps[r]) y += sheet.high[r]; else if (rows[r] || r === sheet.rows) y += z.Gap;
      if (r < sheet.rows) { out.y[r] = y; if (rows[r]) y += h[r]; }
    }
    out.width = x; out.height = y;
    return out;
  }

  // compute places everything, after boxes were opened, closed, hidden or shown.
  compute() {
    const d = this.d, z = this.z;
    this.inner = new Map();
    for (const b of this.open) {
      const sheet = d.boxes[b].inner;
      this.inner.set(b, this.measure(sheet, () => true, () => 0, () => 0));
    }
    this.visible = new Uint8Array(d.boxes.length);
    for (let s = 0; s < this.m.n; s++) if (this.shown[s]) this.visible[d.services.box[s]] = 1;
    this.at = this.measure(d.outer, (b) => this.visible[b], (b) => this.inner.has(b) ? this.inner.get(b).width + 2 * z.Pad : 0, (b) => this.inner.has(b) ? this.inner.get(b).height + z.Head + z.Pad : 0);
    const o = d.outer, at = this.at;
    this.rects = new Float64Array(4 * o.col.length);
    for (let b = 0; b < o.col.length; b++) {
      const inner = this.inner.get(b), c = o.col[b];
      this.rects.set([at.x[c], at.y[o.row[b]], inner ? inner.width + 2 * z.Pad : Math.min(o.width[c], at.right[c] - at.x[c]), inner ? inner.height + z.Head + z.Pad : z.Cell], 4 * b);
    }
    this.curves();
    this.mark();
  }

  // box returns where a box lies: x, y, width, height.
  box(b) { return this.rects.subarray(4 * b, 4 * b + 4); }

  // cell returns where a service lies, or the closed box that it is in.
  cell(s) {
    const b = this.d.services.box[s], inner = this.inner.get(b), box = this.d.boxes[b];
    if (!inner) return this.box(b);
    const [x, y] = this.box(b), i = this.member[s], sheet = box.inner, c = sheet.col[i];
    return [x + this.z.Pad + inner.x[c], y + this.z.Head + inner.y[sheet.row[i]], sheet.width[c], this.z.Cell];
  }

  // way returns the path of an edge between two boxes of a sheet, as segments of
  // [kind, x0, y0, x1, y1]: 0 a curve, 1 a line, 2 an arc to the left. The trunk
  // is its part along a gap; part "ends" leaves it out, "trunk" is it alone.
  way(sheet, at, from, to, rect, dx, dy) {
    const out = [], a = sheet.col[from], b = sheet.col[to], z = this.z;
    const [fx, fy, fw] = rect(from), [tx, ty, tw] = rect(to);
    const aside = a < b ? 7 : 0; // lines that run backwards end below the middle
    const y0 = fy + z.Cell / 2 + aside, y1 = ty + z.Cell / 2 + aside;
    if (a === b) return [[2, fx, y0, tx, y1]];
    const forward = a > b, lane = dy + at.gapY[sheet.gap[to]] + z.Gap / 2 + z.Lane * sheet.lane[to];
    const xa = forward ? fx : fx + fw, xb = forward ? tx + tw : tx;
    const step = forward ? 1 : -1;
    // Columns in between that are not hidden.
    let first = -1, last = -1;
    for (let c = b + step; c !== a; c += step) if (at.cols[c]) { if (first < 0) first = c; last = c; }
    const edgeOfColumn = dx + (forward ? at.right[b] : at.x[b]);
    if (xb !== edgeOfColumn && forward) out.push([1, xb, y1, edgeOfColumn, y1]);
    const startX = dx + (forward ? at.x[a] : at.right[a]);
    if (xa !== startX) out.push([1, xa, y0, startX, y0]);
    if (first < 0) { out.push([0, startX, y0, edgeOfColumn, y1]); return out; }
    const near = dx + (forward ? at.x[first] : at.right[first]), far = dx + (forward ? at.right[last] : at.x[last]);
    out.push([0, startX, y0, far, lane], [1, far, lane, near, lane], [0, near, lane, edgeOfColumn, y1]);
    return out;
  }

  outerWay(from, to) { return this.way(this.d.outer, this.at, from, to, (b) => this.box(b), 0, 0); }

  innerWay(b, i, j) {
    const [x, y] = this.box(b), inner = this.inner.get(b), sheet = this.d.boxes[b].inner, dx = x + this.z.Pad, dy = y + this.z.Head;
    return this.way(sheet, inner, i, j, (k) => [dx + inner.x[sheet.col[k]], dy + inner.y[sheet.row[k]], sheet.width[sheet.col[k]]], dx, dy);
  }

  // edgeWay is the way of a need between two services.
  edgeWay(from, to) {
    const a = this.d.services.box[from], b = this.d.services.box[to];
    if (!this.visible[a] || !this.visible[b] || from === to) return [];
    if (a === b) {
      if (!this.inner.has(a)) return [];
      return this.innerWay(a, this.member[from], this.member[to]);
    }
    const out = this.outerWay(a, b);
    for (const [s, box] of [[from, a], [to, b]]) { // from an open box's edge to the service in it
      if (!this.inner.has(box)) continue;
      const [x, y, w] = this.box(box), [cx, cy, cw] = this.cell(s), mine = y + this.z.Cell / 2, left = this.d.outer.col[s === from ? b : a] < this.d.outer.col[box];
      out.push([0, left ? x : x + w, mine, left ? cx : cx + cw, cy + this.z.Cell / 2]);
    }
    return out;
  }

  // curves lists all segments of what is shown, each trunk once.
  curves() {
    const seen = new Set(), segs = [];
    let drawn = 0;
    const add = (list, back, key) => {
      for (const g of list) {
        if (g[0] === 1) { const k = key + ":" + g[1] + ":" + g[2] + ":" + g[3]; if (seen.has(k)) continue; seen.add(k); }
        else if (list.length > 1 && g === list[list.length - 1]) { const k = key + "e" + back; if (seen.has(k)) continue; seen.add(k); }
        segs.push(g[0], g[1], g[2], g[3], g[4], back ? 1 : 0);
      }
    };
    for (let s = 0; s < this.m.n; s++) { // a need of itself is a word in its box
      const b = this.d.services.box[s];
      if (this.m.self[s] && this.visible[b] && (this.d.boxes[b].services.length === 1 || this.open.has(b))) drawn++;
    }
    const o = this.d.outer;
    this.d.boxEdges.forEach(([a, b], i) => {
      if (!this.visible[a] || !this.visible[b]) return;
      drawn += this.d.weights[i];
      add(this.outerWay(a, b), o.col[a] <= o.col[b], b);
    });
    for (const b of this.open) {
      if (!this.visible[b]) continue;
      const sheet = this.d.boxes[b].inner;
      for (const [i, j] of this.d.boxes[b].edges) { drawn++; add(this.innerWay(b, i, j), sheet.col[i] <= sheet.col[j], b + "/" + j); }
    }
    this.segs = Float64Array.from(segs);
    this.drawn = drawn; // needs between services that lines stand for
  }

  // mark takes the lines that are asked for, each once.
  mark() {
    this.marks = this.look.lines().map(({ color, width, pairs }) => {
      const segs = [], inside = new Map(), seen = new Set();
      for (const [p, q] of pairs) {
        const way = this.edgeWay(p, q), boxes = [this.d.services.box[p], this.d.services.box[q]].filter((b) => this.inner.has(b));
        for (const s of way) {
          const key = s.join();
          if (seen.has(key)) continue;
          seen.add(key);
          segs.push(...s, 0);
          for (const b of boxes) { if (!inside.has(b)) inside.set(b, []); inside.get(b).push(...s, 0); }
        }
      }
      return { color, width, segs, inside };
    });
    this.manyMarks = this.marks.reduce((n, m) => n + m.segs.length, 0) > 6 * 1500;
    this.stale();
  }
  markStyle(g, mark) {
    g.setLineDash([]);
    g.strokeStyle = this.c[mark.color];
    g.lineWidth = this.manyMarks ? Math.max(1, 0.7 / this.scale) : Math.max(mark.width, mark.width * 0.7 / this.scale);
    g.globalAlpha = this.manyMarks ? 0.3 : 1;
  }

  // Camera.
  fit() {
    if (!this.w) return;
    const top = 34, foot = Math.min(52, this.h / 8); // headings, and the legend
    this.scale = Math.min(1.25, (this.w - 24) / Math.max(this.at.width, 1), (this.h - top - foot) / Math.max(this.at.height, 1));
    this.ox = (this.w - this.at.width * this.scale) / 2;
    this.oy = top + (this.h - top - foot - this.at.height * this.scale) / 2;
    this.touch();
  }
  zoom(factor, x, y) {
    const s = Math.min(4, Math.max(0.004, this.scale * factor)), f = s / this.scale;
    x = x === undefined ? this.w / 2 : x; y = y === undefined ? this.h / 2 : y;
    this.ox = x - (x - this.ox) * f; this.oy = y - (y - this.oy) * f; this.scale = s;
    this.touch();
  }
  pan(dx, dy) { this.ox += dx; this.oy += dy; this.touch(); }
  // reveal moves a service into view, and near enough to be read if asked to.
  reveal(s, near) {
    if (!this.w) return;
    const [x, y, w, h] = this.cell(s);
    if (near && this.scale < 0.6) this.scale = 0.85;
    const px = x * this.scale + this.ox, py = y * this.scale + this.oy;
    if (near || px < 10 || py < 40 || px + w * this.scale > this.w - 10 || py + h * this.scale > this.h - 10) {
      this.ox = this.w / 2 - (x + w / 2) * this.scale; this.oy = this.h / 2 - (y + h / 2) * this.scale;
    }
    this.touch();
  }
  camera() { return [(this.w / 2 - this.ox) / this.scale, (this.h / 2 - this.oy) / this.scale, this.scale]; }
  setCamera([x, y, s]) {
    this.placed = true; this.scale = s; this.ox = (this.w || 800) / 2 - x * s; this.oy = (this.h || 600) / 2 - y * s;
    this.touch();
  }
  touch() { this.moved = performance.now(); this.draw(); if (this.onmove) this.onmove(); }
  stale() { this.layer = null; this.draw(); }
  draw() { if (!this.pending) { this.pending = true; requestAnimationFrame(() => { this.pending = false; this.paint(); }); } }

  // hit returns what lies at a point of the canvas: {box, service} or null.
  hit(px, py) {
    const x = (px - this.ox) / this.scale, y = (py - this.oy) / this.scale, o = this.d.outer;
    for (let b = 0; b < o.col.length; b++) {
      if (!this.visible[b]) continue;
      const r = this.rects, k = 4 * b;
      if (x < r[k] || y < r[k + 1] || x > r[k] + r[k + 2] || y > r[k + 1] + r[k + 3]) continue;
      const all = this.d.boxes[b].services;
      if (all.length === 1) return { box: b, service: all[0] };
      if (!this.inner.has(b)) return { box: b };
      for (const s of all) { const [cx, cy, cw, ch] = this.cell(s); if (x >= cx && y >= cy && x <= cx + cw && y <= cy + ch) return { box: b, service: s }; }
      return { box: b };
    }
    return null;
  }

  // stroke draws those of segments s, from lo on, that run as back says and whose
  // box touches the view; it returns false once time is over, with this.next at
  // where to go on.
  stroke(g, s, lo, back, deadline) {
    const hi = s.length, x0 = -this.ox / this.scale, y0 = -this.oy / this.scale, x1 = x0 + this.w / this.scale, y1 = y0 + this.h / this.scale;
    let i = lo, path = 0;
    g.beginPath();
    for (; i < hi; i += 6) {
      if (s[i + 5] !== back) continue;
      const ax = s[i + 1], ay = s[i + 2], bx = s[i + 3], by = s[i + 4];
      if (Math.max(ax, bx) < x0 || Math.min(ax, bx) - 60 > x1 || Math.max(ay, by) < y0 || Math.min(ay, by) > y1) continue;
      this.segment(g, s[i], ax, ay, bx, by);
      if (++path === 200) {
        g.stroke(); g.beginPath(); path = 0;
        if (deadline && performance.now() > deadline) { i += 6; break; }
      }
    }
    g.stroke();
    this.next = i;
    return i >= hi;
  }
  segment(g, kind, ax, ay, bx, by) {
    g.moveTo(ax, ay);
    if (kind === 1) g.lineTo(bx, by);
    else if (kind === 0) { const m = (ax + bx) / 2; g.bezierCurveTo(m, ay, m, by, bx, by); }
    else { const m = Math.min(ax, bx) - 26; g.bezierCurveTo(m, ay, m, by, bx, by); }
  }

  camera2d(g) { g.setTransform(this.k * this.scale, 0, 0, this.k * this.scale, this.k * this.ox, this.k * this.oy); }

  edgeStyle(g, back) {
    const many = this.segs.length / 6;
    g.strokeStyle = back ? this.c.bad : this.c.edge;
    g.lineWidth = Math.max(1, 0.6 / this.scale);
    g.globalAlpha = (back ? 0.7 : many > 20000 ? 0.09 : many > 4000 ? 0.22 : many > 800 ? 0.4 : 0.55) * (this.look.dim() ? 0.35 : 1);
    g.setLineDash(back ? [5, 3] : []);
  }

  // edges draws all lines: at once where they are few; else what was drawn
  // last, moved, and again from anew once the picture rests, a little in each
  // frame.
  edges(g) {
    if (this.segs.length <= 6 * 1500 && !this.manyMarks) {
      this.camera2d(g);
      for (const back of [0, 1]) { this.edgeStyle(g, back); this.stroke(g, this.segs, 0, back); }
      g.globalAlpha = 1; g.setLineDash([]);
      return;
    }
    const same = (l) => l && l.scale === this.scale && l.ox === this.ox && l.oy === this.oy && l.canvas.width === this.canvas.width && l.canvas.height === this.canvas.height;
    if (!this.layer) this.front = this.back = null;
    this.layer = true;
    if (!same(this.front) && performance.now() - this.moved > 120) {
      if (!same(this.back)) {
        const canvas = document.createElement("canvas");
        canvas.width = this.canvas.width; canvas.height = this.canvas.height;
        this.back = { canvas, scale: this.scale, ox: this.ox, oy: this.oy, pass: 0, at: 0 };
      }
      const b = this.back, gl = b.canvas.getContext("2d"), deadline = performance.now() + 10;
      this.camera2d(gl);
      // First all lines, then those that are asked for, if they are many.
      const late = this.manyMarks ? this.marks : [], mark = late[b.pass - 2];
      if (mark) this.markStyle(gl, mark); else this.edgeStyle(gl, b.pass);
      if (this.stroke(gl, mark ? mark.segs : this.segs, b.at, mark ? 0 : b.pass, deadline)) { b.pass++; b.at = 0; } else b.at = this.next;
      if (b.pass === 2 + late.length) { this.front = b; this.back = null; }
    }
    const l = same(this.front) || !same(this.back) ? this.front : this.back;
    if (l) {
      const f = this.scale / l.scale;
      g.setTransform(1, 0, 0, 1, 0, 0);
      g.drawImage(l.canvas, this.k * (this.ox - l.ox * f), this.k * (this.oy - l.oy * f), l.canvas.width * f, l.canvas.height * f);
    }
    this.busy = !same(this.front);
    if (this.busy) this.draw();
  }

  paint() {
    if (!this.w) return;
    const g = this.canvas.getContext("2d"), c = this.c, o = this.d.outer, at = this.at;
    const t0 = performance.now();
    g.setTransform(1, 0, 0, 1, 0, 0);
    g.globalAlpha = 1;
    g.fillStyle = c.paper; g.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.camera2d(g);
    // Layers.
    const top = -this.oy / this.scale, bottom = top + this.h / this.scale;
    this.heads = [];
    o.bands.forEach(([first, count], l) => {
      let a = -1, b = -1;
      for (let k = first; k < first + count; k++) if (at.cols[k]) { if (a < 0) a = k; b = k; }
      if (a < 0) return;
      const left = at.x[a] - Math.min(o.gut[a], 40) / 2, right = at.right[b] + Math.min(o.gut[b + 1], 40) / 2;
      if (l % 2 === 0) { g.fillStyle = c.band; g.fillRect(left, top, right - left, bottom - top); }
      this.heads.push([l, at.x[a], right]);
    });
    this.edges(g);
    this.camera2d(g);
    // What is asked for lies over the other lines.
    if (!this.manyMarks) for (const mark of this.marks) { this.markStyle(g, mark); this.stroke(g, mark.segs, 0, 0); }
    g.globalAlpha = 1;
    const r = this.rects, x0 = -this.ox / this.scale, y0 = top, x1 = x0 + this.w / this.scale, y1 = bottom, plain = this.scale < 0.3 && this.look.plain();
    for (let b = 0, k = 0; b < o.col.length; b++, k += 4) {
      if (!this.visible[b] || r[k] + r[k + 2] < x0 || r[k] > x1 || r[k + 1] + r[k + 3] < y0 || r[k + 1] > y1) continue;
      if (plain && this.d.boxes[b].services.length === 1) { // nothing but an owner's colour could be seen
        g.globalAlpha = 0.6; g.fillStyle = this.ownerColor(this.d.boxes[b].services[0]); g.fillRect(r[k], r[k + 1], r[k + 2], r[k + 3]);
      } else { g.globalAlpha = 1; this.component(g, b, r[k], r[k + 1], r[k + 2], r[k + 3]); }
    }
    g.globalAlpha = 1;
    this.headings(g);
    this.took = performance.now() - t0;
    this.frames = (this.frames || 0) + 1;
  }

  // headings stay at the upper edge.
  headings(g) {
    const c = this.c, counts = this.layerCounts();
    g.setTransform(this.k, 0, 0, this.k, 0, 0);
    g.fillStyle = c.paper; g.globalAlpha = 0.9; g.fillRect(0, 0, this.w, 26); g.globalAlpha = 1;
    g.font = "12px system-ui, sans-serif"; g.textBaseline = "middle";
    let free = 0;
    for (const [l, x, right] of this.heads) {
      const px = Math.max(x * this.scale + this.ox, 8), end = right * this.scale + this.ox;
      if (end < 12 || px > this.w || px < free) continue;
      const room = end - px, name = this.look.layerName(l);
      const text = room > 130 ? name + " · " + counts[l].toLocaleString("en") + (counts[l] === 1 ? " service" : " services") : room > 52 ? name : String(l + 1);
      g.fillStyle = c.soft; g.fillText(text, px, 14);
      free = px + g.measureText(text).width + 8;
    }
  }
  layerCounts() {
    if (this.counted !== this.visible) {
      this.counted = this.visible; this.counts = this.d.outer.bands.map(() => 0);
      this.d.boxes.forEach((b, i) => { if (this.visible[i]) for (const s of b.services) if (this.shown[s]) this.counts[b.layer]++; });
    }
    return this.counts;
  }

  component(g, b, x, y, w, h) {
    const box = this.d.boxes[b], c = this.c;
    if (box.services.length === 1) return this.service(g, box.services[0], x, y, w, h, this.m.self[box.services[0]]);
    const far = this.scale < 0.4, open = this.inner.has(b), look = this.look.box(b);
    g.globalAlpha = look.dim ? 0.3 : 1;
    g.fillStyle = box.blocking ? c.badcard : box.cyclic ? c.warncard : c.card;
    g.strokeStyle = box.blocking ? c.bad : box.cyclic ? c.warn : c.line;
    g.lineWidth = look.strong ? 3 : 1.4;
    if (!open && !far) { round(g, x + 3, y + 3, w, h, 6); g.fill(); g.stroke(); }
    round(g, x, y, w, h, 6);
    if (open) { g.save(); g.globalAlpha *= 0.55; g.fill(); g.restore(); } else g.fill();
    g.stroke();
    if (far && !open) { g.globalAlpha = 1; return; }
    g.fillStyle = c.ink; g.textBaseline = "alphabetic";
    if (open) {
      g.font = "600 12px system-ui, sans-serif";
      g.fillText("⟳ " + box.below + (look.note ? " · " + look.note : ""), x + 12, y + 18);
      g.globalAlpha = 1;
      if (!far) this.insideEdges(g, b);
      for (const s of box.services) { const [cx, cy, cw, ch] = this.cell(s); this.service(g, s, cx, cy, cw, ch, this.m.self[s]); }
    } else {
      g.font = "12px " + this.mono;
      g.fillText("⟳", x + 9, y + h / 2 + 4);
      g.fillText(fit(box.name, (w - this.z.Inset) / this.z.Name), x + 28, y + 15.5);
      g.font = "10.5px system-ui, sans-serif"; g.fillStyle = box.blocking ? c.bad : c.soft;
      g.fillText(look.note || box.below, x + 28, y + 28.5);
    }
    g.globalAlpha = 1;
  }
  // insideEdges draws the lines of an open box again, over its ground.
  insideEdges(g, b) {
    const sheet = this.d.boxes[b].inner;
    for (const back of [0, 1]) {
      this.edgeStyle(g, back);
      g.beginPath();
      for (const [i, j] of this.d.boxes[b].edges) if ((sheet.col[i] <= sheet.col[j] ? 1 : 0) === back) for (const s of this.innerWay(b, i, j)) this.segment(g, ...s);
      g.stroke();
    }
    g.setLineDash([]); g.globalAlpha = 1;
    for (const mark of this.marks) if (mark.inside.has(b)) { this.markStyle(g, mark); this.stroke(g, mark.inside.get(b), 0, 0); }
    g.globalAlpha = 1;
  }

  service(g, s, x, y, w, h, self) {
    const c = this.c, look = this.look.service(s), state = this.d.services.state[s], far = this.scale < 0.4;
    const assumed = state === "unproven" || state === "unowned";
    g.globalAlpha = look.dim ? 0.3 : 1;
    g.fillStyle = look.fill || (assumed ? c.paper : c.card);
    if (far) {
      if (!look.fill) { g.fillStyle = this.ownerColor(s); g.globalAlpha *= 0.6; }
      g.fillRect(x, y, w, h);
      if (this.scale >= 0.3 && !look.dim) { g.globalAlpha = 1; g.fillStyle = c.ink; g.font = 8.5 / this.scale + "px " + this.mono; g.textBaseline = "middle"; g.fillText(fit(this.m.name[s], (w * this.scale - 6) / 5.15), x + 3 / this.scale, y + h / 2); }
      if (look.stroke) { g.globalAlpha = 1; g.strokeStyle = look.stroke; g.lineWidth = Math.max(2, 1.6 / this.scale); g.strokeRect(x, y, w, h); }
      g.globalAlpha = 1;
      return;
    }
    round(g, x, y, w, h, 6);
    g.fill();
    g.strokeStyle = look.stroke || (self ? c.bad : c.line);
    g.lineWidth = look.stroke ? 2 : 1;
    g.setLineDash(assumed ? [3, 3] : state === "unpared" ? [7, 3] : []);
    g.stroke();
    g.setLineDash([]);
    g.fillStyle = this.ownerColor(s);
    g.fillRect(x + 1, y + 6, 3, h - 12);
    mark(g, state, x + 15, y + h / 2, c);
    g.textBaseline = "alphabetic";
    const own = this.m.ownerOf(s), below = look.note || (self ? (own ? own + " · " : "") + "needs itself" : own);
    g.fillStyle = c.ink; g.font = "12px " + this.mono;
    g.fillText(fit(this.m.name[s], (w - this.z.Inset) / this.z.Name), x + 28, below ? y + 15.5 : y + h / 2 + 4);
    if (below) {
      g.font = (look.note ? "600 " : "") + "10.5px system-ui, sans-serif"; g.fillStyle = look.noteColor || c.soft;
      g.fillText(fit(below, (w - this.z.Inset + 6) / (this.z.Small * (look.note ? 1.12 : 1))), x + 28, y + 28.5);
    }
    g.globalAlpha = 1;
  }
}

function round(g, x, y, w, h, r) { g.beginPath(); g.roundRect(x, y, w, h, r); }

// mark draws the sign of a state: shapes differ, and not only colours.
function mark(g, state, x, y, c) {
  g.beginPath();
  g.lineWidth = 2;
  if (state === "proven") { g.fillStyle = c.good; g.arc(x, y, 5, 0, 7); g.fill(); return; }
  g.strokeStyle = state === "claimed" || state === "unpared" ? c.accent : c.soft;
  if (state === "claimed") g.arc(x, y, 4.5, 0, 7);
  else if (state === "unpared") { g.moveTo(x - 5, y); g.lineTo(x, y + 5); g.lineTo(x + 5, y); g.lineTo(x, y - 5); g.closePath(); }
  else { g.moveTo(x - 4, y); g.lineTo(x + 4, y); }
  g.stroke();
}

// fit cuts a text to so many characters, visibly, in its middle.
function fit(s, width) {
  const n = Math.max(Math.floor(width), 3), r = Array.from(s);
  return r.length <= n ? s : r.slice(0, Math.floor(n / 2)).join("") + "…" + r.slice(r.length - Math.floor((n - 1) / 2)).join("");
}
