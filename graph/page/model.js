// The graph as numbers, and its questions. The analysis is that of pathways and
// recipes, as in Go: a pathway is back if one recipe that restores it has all
// that it needs (OR over AND), and a service is back if all its pathways are.

class Model {
  constructor(d) {
    this.d = d;
    const s = d.services, e = d.edges, r = d.recipes;
    this.name = s.name || [];
    this.n = this.name.length;
    this.first = s.first || [0];
    this.pathways = this.first[this.n];
    this.recipes = (r.label || []).length;
    this.edgeCount = (e.to || []).length;
    this.owner = new Int32Array(this.pathways); // pathway → service
    for (let i = 0; i < this.n; i++) for (let p = this.first[i]; p < this.first[i + 1]; p++) this.owner[p] = i;
    this.usable = (r.excluded || []).map((x) => !x);
    this.assumed = new Uint8Array(this.pathways);
    for (const p of d.assumed) this.assumed[p] = 1;

    // Edges are sorted by recipe.
    this.edgesOf = new Int32Array(this.recipes + 1);
    for (const x of e.recipe || []) this.edgesOf[x + 1]++;
    for (let i = 0; i < this.recipes; i++) this.edgesOf[i + 1] += this.edgesOf[i];
    this.users = lists(this.pathways); // pathway → recipes
    this.restoredBy = lists(this.pathways);
    this.ways = lists(this.n); // service → recipes
    this.into = lists(this.n); // service → edges that need it
    for (let x = 0; x < this.recipes; x++) {
      this.ways[r.service[x]].push(x);
      for (const p of r.restores[x]) this.restoredBy[p].push(x);
    }
    for (let i = 0; i < this.edgeCount; i++) {
      this.into[e.to[i]].push(i);
      for (const p of e.pathways[i]) this.users[p].push(e.recipe[i]);
    }
    // Neighbours by service, without repeats.
    this.out = lists(this.n);
    this.inn = lists(this.n);
    this.self = new Uint8Array(this.n);
    const seen = new Int32Array(this.n).fill(-1);
    for (let i = 0; i < this.n; i++) {
      for (const x of this.ways[i]) {
        if (r.excluded[x] === "unpared") continue;
        for (let k = this.edgesOf[x]; k < this.edgesOf[x + 1]; k++) {
          const to = e.to[k];
          if (to === i) this.self[i] = 1;
          if (seen[to] !== i) { seen[to] = i; this.out[i].push(to); this.inn[to].push(i); }
        }
      }
    }
    this.index = new Map();
    for (let i = this.n - 1; i >= 0; i--) this.index.set(this.name[i], i);
  }

  find(name) { const i = this.index.get(name); return i === undefined ? -1 : i; }
  from(edge) { return this.d.recipes.service[this.d.edges.recipe[edge]]; }
  place(file, line) { const f = this.d.files[file]; return f ? f + ":" + line : ""; }
  edgePlace(i) { return this.place(this.d.edges.file[i], this.d.edges.line[i]); }
  servicePlace(i) { return this.place(this.d.services.file[i], this.d.services.line[i]); }
  ownerOf(i) { return this.d.owners[this.d.services.owner[i]]; }

  // edgesFrom lists the edges of a service's recipes.
  edgesFrom(s) {
    const out = [];
    for (const x of this.ways[s]) for (let k = this.edgesOf[x]; k < this.edgesOf[x + 1]; k++) out.push(k);
    return out;
  }

  // needsOf lists the pathways that a recipe needs.
  needsOf(x) {
    const out = [];
    for (let k = this.edgesOf[x]; k < this.edgesOf[x + 1]; k++) out.push(...this.d.edges.pathways[k]);
    return out;
  }

  // comeBack is the least fixpoint, in rounds: for each pathway 0 if it is up
  // from the start, its round, or -1 if it does not come back.
  comeBack(lost) {
    const wave = new Int32Array(this.pathways), missing = new Int32Array(this.recipes);
    for (let p = 0; p < this.pathways; p++) if (lost[this.owner[p]] && (!this.assumed[p] || this.d.down)) wave[p] = -1;
    let ready = [];
    for (let x = 0; x < this.recipes; x++) {
      for (const p of this.needsOf(x)) if (wave[p] < 0) missing[x]++;
      if (missing[x] === 0 && this.usable[x]) ready.push(x);
    }
    for (let round = 1; ready.length; round++) {
      const up = [], next = [];
      for (const x of ready) for (const p of this.d.recipes.restores[x]) if (wave[p] < 0 && this.d.recipes.excluded[x] !== "unpared") { wave[p] = round; up.push(p); }
      for (const p of up) for (const x of this.users[p]) if (--missing[x] === 0 && this.usable[x]) next.push(x);
      ready = next;
    }
    return wave;
  }

  // outage answers as bj graph --outage does: what is lost, in which wave each
  // service comes back (from 1; 0 for what was not lost or is assumed, -1 for
  // what is stuck), and whether what is stuck is in a cycle.
  outage(down, spread) {
    const lost = new Uint8Array(this.n);
    for (const s of down) lost[s] = 1;
    if (spread) {
      const queue = [], seen = new Uint8Array(this.pathways);
      const visit = (p) => { if (!seen[p]) { seen[p] = 1; queue.push(p); lost[this.owner[p]] = 1; } };
      for (const s of down) for (let p = this.first[s]; p < this.first[s + 1]; p++) visit(p);
      while (queue.length) for (const x of this.users[queue.pop()]) if (this.d.recipes.excluded[x] !== "unpared") this.d.recipes.restores[x].forEach(visit);
    }
    const up = this.comeBack(lost), wave = new Int32Array(this.n), used = new Set();
    for (let s = 0; s < this.n; s++) {
      for (let p = this.first[s]; p < this.first[s + 1]; p++) {
        if (up[p] < 0) { wave[s] = -1; break; }
        wave[s] = Math.max(wave[s], up[p]);
      }
      if (!lost[s]) wave[s] = 0;
      if (wave[s] > 0) used.add(wave[s]);
    }
    const rounds = [...used].sort((a, b) => a - b), number = new Map(rounds.map((r, i) => [r, i + 1]));
    const waves = rounds.map(() => []), stuck = [];
    const inCycle = this.stuckCycles(up);
    for (let s = 0; s < this.n; s++) {
      if (wave[s] > 0) { wave[s] = number.get(wave[s]); waves[wave[s] - 1].push(s); }
      if (wave[s] < 0) stuck.push(s);
    }
    return { lost, wave, waves, stuck, inCycle, up };
  }

  // stuckCycles marks services with a pathway that is down and in a cycle of
  // others that are (Tarjan's components, with a stack of their own).
  stuckCycles(up) {
    const g = lists(this.pathways);
    for (let p = 0; p < this.pathways; p++) {
      if (up[p] >= 0) continue;
      for (const x of this.restoredBy[p]) if (this.usable[x]) for (const q of this.needsOf(x)) if (up[q] < 0) g[p].push(q);
    }
    const low = new Int32Array(this.pathways), at = new Int32Array(this.pathways), index = new Int32Array(this.pathways);
    const marked = new Uint8Array(this.n), on = new Uint8Array(this.pathways), stack = [];
    let next = 1;
    for (let root = 0; root < this.pathways; root++) {
      if (up[root] >= 0 || index[root]) continue;
      const calls = [root];
      while (calls.length) {
        const v = calls[calls.length - 1];
        if (!index[v]) { index[v] = low[v] = next++; stack.push(v); on[v] = 1; }
        let down = false;
        while (at[v] < g[v].length) {
          const w = g[v][at[v]++];
          if (!index[w]) { calls.push(w); down = true; break; }
          if (on[w]) low[v] = Math.min(low[v], index[w]);
        }
        if (down) continue;
        calls.pop();
        if (calls.length) { const u = calls[calls.length - 1]; low[u] = Math.min(low[u], low[v]); }
        if (low[v] !== index[v]) continue;
        const members = [];
        let w;
        do { w = stack.pop(); on[w] = 0; members.push(w); } while (w !== v);
        if (members.length > 1 || g[v].includes(v)) for (const m of members) marked[this.owner[m]] = 1;
      }
    }
    return marked;
  }

  // waitsFor says of a stuck service what each of its ways back misses.
  waitsFor(s, up) {
    const out = [];
    for (const x of this.ways[s]) {
      if (this.d.recipes.excluded[x]) { out.push({ recipe: x, excluded: this.d.recipes.excluded[x], missing: [] }); continue; }
      const missing = new Set();
      for (const p of this.needsOf(x)) if (up[p] < 0) missing.add(this.owner[p]);
      if (missing.size) out.push({ recipe: x, missing: [...missing] });
    }
    return out;
  }

  // why returns the edges of a shortest path of at least one edge from a to b,
  // or null: the path that bj graph --why prints.
  why(a, b) {
    const parent = new Int32Array(this.pathways).fill(-1), queue = [];
    for (let p = this.first[a]; p < this.first[a + 1]; p++) { parent[p] = -2; queue.push(p); }
    for (let i = 0; i < queue.length; i++) {
      const v = queue[i];
      for (const x of this.restoredBy[v]) {
        for (const w of this.needsOf(x)) {
          if (this.owner[w] === b) {
            const path = [w];
            for (let u = v; u !== -2; u = parent[u]) path.unshift(u);
            return path.slice(1).map((q, k) => this.edgeBetween(path[k], q));
          }
          if (parent[w] === -1) { parent[w] = v; queue.push(w); }
        }
      }
    }
    return null;
  }

  // edgeBetween returns an edge by which pathway p needs q, of a recipe that is
  // a way out where there is one.
  edgeBetween(p, q) {
    let found = -1;
    for (const x of this.restoredBy[p]) {
      for (let k = this.edgesOf[x]; k < this.edgesOf[x + 1]; k++) {
        if (!this.d.edges.pathways[k].includes(q)) continue;
        if (this.usable[x]) return k;
        if (found < 0) found = k;
      }
    }
    return found;
  }

  // around returns how far each service is from s, towards what it needs
  // (negative) or what needs it (positive), within depth; 0 is s, NaN is beyond.
  around(s, depth) {
    const far = new Float64Array(this.n).fill(NaN);
    for (const [next, sign] of [[this.inn, 1], [this.out, -1]]) {
      const seen = new Uint8Array(this.n);
      let ring = [s];
      seen[s] = 1;
      for (let k = 1; k <= depth && ring.length; k++) {
        const more = [];
        for (const v of ring) for (const w of next[v]) if (!seen[w]) { seen[w] = 1; more.push(w); if (!(Math.abs(far[w]) <= k)) far[w] = sign * k; }
        ring = more;
      }
    }
    far[s] = 0;
    return far;
  }
}

function lists(n) { return Array.from({ length: n }, () => []); }
