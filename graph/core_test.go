package graph

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// slow is a graph checked by definition.
func closure(g csr) [][]bool {
	n := len(g.start) - 1
	c := make([][]bool, n)
	for i := range c {
		c[i] = make([]bool, n)
		for _, j := range g.of(int32(i)) {
			c[i][j] = true
		}
	}
	for k := range n {
		for i := range n {
			for j := range n {
				c[i][j] = c[i][j] || c[i][k] && c[k][j]
			}
		}
	}
	return c
}

// TestComponents compares Tarjan's components with those that follow from the
// transitive closure, on random graphs.
func TestComponents(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		n := 1 + r.IntN(12)
		var p pairs
		for range r.IntN(3 * n) {
			p.add(int32(r.IntN(n)), int32(r.IntN(n)))
		}
		g := newCSR(n, p)
		c := findComponents(g, nil)
		all := closure(g)
		for i := range int32(n) {
			for j := range int32(n) {
				want := i == j || all[i][j] && all[j][i]
				if got := c.of[i] == c.of[j]; got != want {
					t.Fatalf("%v: %d and %d: together %t, want %t", p, i, j, got, want)
				}
				if all[i][j] && c.of[j] > c.of[i] {
					t.Fatalf("%v: components are in no topological order", p)
				}
			}
			if !slices.Contains(c.members(c.of[i]), i) {
				t.Fatalf("%v: component %d has no %d", p, c.of[i], i)
			}
			if got := c.cyclic(g, c.of[i]); got != all[i][i] {
				t.Fatalf("%v: cyclic %t", p, got)
			}
		}
	}
}
