package graph

import (
	"slices"
	"strings"
)

// Impact answers: what hangs on one service?
type Impact struct {
	Schema  string   `json:"schema"`
	Blocked []string `json:"blocked"` // every way back needs it
	Touched []string `json:"touched"` // some way back has it; includes blocked
	Service string   `json:"service"`
	Assumed Assumed  `json:"assumed"`
}

// Impact returns what needs a service, directly or not, on some way back and on
// every one. The service itself is not part of it.
func (g *Graph) Impact(s int) *Impact {
	own := func(p int32) bool { return g.owner[p] == int32(s) }
	f := g.comeBack(everything, own)
	var blocked, touched []int32
	for p, hit := range reach(g.radj, g.pathways(int32(s)), nil) {
		if !hit || own(int32(p)) {
			continue
		}
		touched = append(touched, g.owner[p])
		if !f.up(int32(p)) {
			blocked = append(blocked, g.owner[p])
		}
	}
	return &Impact{Schema: schemaOf("impact"), Service: g.services[s].Name, Blocked: g.names(blocked), Touched: g.names(touched), Assumed: g.Assumed()}
}

// Why answers: why does one service need another?
type Why struct {
	Schema  string  `json:"schema"`
	Path    []Edge  `json:"path"`  // a shortest one; empty if there is none
	Edges   []Edge  `json:"edges"` // on some path
	From    string  `json:"from"`
	To      string  `json:"to"`
	Assumed Assumed `json:"assumed"`
}

// Why returns the ways by which service a needs service b. For a service and
// itself these are its cycles.
func (g *Graph) Why(a, b int) *Why {
	w := &Why{Schema: schemaOf("why"), From: g.services[a].Name, To: g.services[b].Name, Path: []Edge{}, Edges: []Edge{}, Assumed: g.Assumed()}
	from, to := g.pathways(int32(a)), g.pathways(int32(b))
	path := shortestPath(g.adj, from, func(p int32) bool { return g.owner[p] == int32(b) })
	if path == nil {
		return w
	}
	w.Path = g.walk(path, false)
	ahead, behind := reach(g.adj, from, nil), reach(g.radj, to, nil)
	var edges []int32
	for r := range int32(g.ways) {
		if !slices.ContainsFunc(g.restores.of(r), func(p int32) bool { return ahead[p] }) {
			continue
		}
		for k := g.needs.start[r]; k < g.needs.start[r+1]; k++ {
			if behind[g.needs.to[k]] {
				edges = append(edges, g.needEdge[k])
			}
		}
	}
	slices.Sort(edges)
	for _, e := range slices.Compact(edges) {
		w.Edges = append(w.Edges, g.Edge(int(e)))
	}
	return w
}

// shortestPath returns a shortest path of at least one edge from any of some
// nodes to one that is an end, or nil.
func shortestPath(g csr, from []int32, end func(int32) bool) []int32 {
	parent := make([]int32, len(g.start)-1)
	for i := range parent {
		parent[i] = -1
	}
	const root = -2
	queue := slices.Clone(from)
	for _, v := range from {
		parent[v] = root
	}
	for i := 0; i < len(queue); i++ {
		v := queue[i]
		for _, w := range g.of(v) {
			if end(w) {
				path := []int32{w}
				for ; v != root; v = parent[v] {
					path = append(path, v)
				}
				slices.Reverse(path)
				return path
			}
			if parent[w] == -1 {
				parent[w] = v
				queue = append(queue, w)
			}
		}
	}
	return nil
}

// Closes returns the services of a shortest cycle that would be closed if a
// recipe needed a pathway, the recipe's own service first; nil if none would be.
func (g *Graph) Closes(recipe, service, pathway string) []string {
	r, ok := slices.BinarySearchFunc(g.recipes, recipe, func(r Recipe, l string) int { return strings.Compare(r.Label, l) })
	s, known := g.Find(service)
	if !ok || !known {
		return nil
	}
	i, ok := slices.BinarySearch(g.services[s].Pathways, pathway)
	if !ok {
		return nil
	}
	need := g.first[s] + int32(i)
	own := g.restores.of(int32(r))
	path := []int32{need}
	if !slices.Contains(own, need) {
		if path = shortestPath(g.adj, path, func(p int32) bool { return slices.Contains(own, p) }); path == nil {
			return nil
		}
	}
	out := []string{g.recipes[r].Service}
	for _, p := range path {
		if name := g.services[g.owner[p]].Name; name != out[len(out)-1] && name != out[0] {
			out = append(out, name)
		}
	}
	return out
}

// RecipeWaves returns for each recipe the round in which it can be run, from 1,
// when everything comes back from nothing; 0 for one that never can. A recipe
// that is no way out may have a round; nothing is brought back by it.
func (g *Graph) RecipeWaves() []int {
	f := g.comeBack(everything, nil)
	out := make([]int, g.ways)
	for r := range out {
		if f.missing[r] > 0 {
			continue
		}
		out[r] = 1
		for _, q := range g.needs.of(int32(r)) {
			out[r] = max(out[r], int(f.wave[q])+1)
		}
	}
	return out
}
