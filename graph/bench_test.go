package graph

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// fleetPairs is a fleet of n services as numbers: five needs each, mostly of
// what came before, and a few that close cycles.
func fleetPairs(n int) pairs {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	p := pairs{make([]int32, 0, 5*n), make([]int32, 0, 5*n)}
	name := r.Perm(n) // neighbours do not lie together
	for i := 1; i < n; i++ {
		var seen [5]int
		for k := range 5 {
			j := r.IntN(i)
			if r.IntN(200_000) == 0 {
				j = r.IntN(n)
			}
			if j == i || k > 0 && (j == seen[0] || j == seen[1] || j == seen[2] || j == seen[3]) {
				continue
			}
			seen[k] = j
			p.add(int32(name[i]), int32(name[j]))
		}
	}
	return p
}

// ours does what the questions do, from edges to answers: components, order,
// and the reach of 20 services.
func ours(n int, p pairs) int {
	needs := newCSR(n, p)
	restores := csr{start: make([]int32, n+1), to: make([]int32, n)}
	usable, assumed := make([]bool, n), make([]bool, n)
	for i := range n {
		restores.start[i+1], restores.to[i], usable[i] = int32(i+1), int32(i), true
	}
	c := newCore(n, needs, restores, usable, assumed, false)
	cs := findComponents(c.adj, nil)
	layers := cs.layers(c.adj)
	f := c.comeBack(everything, nil)
	sum := cs.count() + int(layers[0]) + f.rounds
	for i := range int32(20) {
		for _, hit := range reach(c.radj, []int32{i}, nil) {
			if hit {
				sum++
			}
		}
	}
	return sum
}

// BenchmarkGraph compares with a plain CSR and an iterative Tarjan, which know
// neither recipes nor alternatives.
func BenchmarkGraph(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		p := fleetPairs(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var mine, theirs time.Duration
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			peak := uint64(0)
			for b.Loop() {
				start := time.Now()
				got := ours(n, p)
				mine += time.Since(start)
				b.StopTimer()
				runtime.ReadMemStats(&after)
				peak = max(peak, after.HeapSys-after.HeapReleased)
				runtime.GC()
				start = time.Now()
				want := baseline(n, p)
				theirs += time.Since(start)
				if got != want {
					b.Fatalf("we say %d, and the baseline %d", got, want)
				}
				runtime.GC()
				b.StartTimer()
			}
			b.ReportMetric(mine.Seconds()/theirs.Seconds(), "x-plain-CSR")
			b.ReportMetric(float64(peak)/1e6, "MB-heap")
			if peak > 400e6 {
				b.Errorf("%d MB of heap", peak/1e6)
			}
		})
	}
}

// baseline is components, layers, rounds and reach on a plain graph, written
// for that alone.
func baseline(n int, p pairs) int {
	build := func(from, to []int32) (start, adj []int32) {
		start, adj = make([]int32, n+2), make([]int32, len(to))
		for _, f := range from {
			start[f+2]++
		}
		for i := 2; i < len(start); i++ {
			start[i] += start[i-1]
		}
		for i, f := range from {
			adj[start[f+1]] = to[i]
			start[f+1]++
		}
		return start[:n+1], adj
	}
	start, adj := build(p.from, p.to)
	rstart, radj := build(p.to, p.from)

	index, low, comp := make([]int32, n), make([]int32, n), make([]int32, n)
	edge, onStack := make([]int32, n), make([]bool, n)
	var stack, calls []int32
	next, components := int32(0), int32(0)
	layer := make([]int32, 0, n)
	for root := range int32(n) {
		if index[root] != 0 {
			continue
		}
		calls = append(calls, root)
		for len(calls) > 0 {
			v := calls[len(calls)-1]
			if index[v] == 0 {
				next++
				index[v], low[v], edge[v] = next, next, start[v]
				stack = append(stack, v)
				onStack[v] = true
			}
			pushed := false
			for edge[v] < start[v+1] {
				w := adj[edge[v]]
				if index[w] == 0 {
					calls = append(calls, w)
					pushed = true
					break
				}
				if onStack[w] {
					low[v] = min(low[v], low[w])
				}
				edge[v]++
			}
			if pushed {
				continue
			}
			calls = calls[:len(calls)-1]
			if low[v] != index[v] {
				continue
			}
			from := len(stack) - 1
			for stack[from] != v {
				from--
			}
			l := int32(0)
			for _, w := range stack[from:] {
				comp[w] = components
				onStack[w] = false
			}
			for _, w := range stack[from:] {
				for _, x := range adj[start[w]:start[w+1]] {
					if comp[x] != components {
						l = max(l, layer[comp[x]]+1)
					}
				}
			}
			layer = append(layer, l)
			stack = stack[:from]
			components++
		}
	}
	missing := make([]int32, n)
	var queue, ready []int32
	for v := range int32(n) {
		if missing[v] = start[v+1] - start[v]; missing[v] == 0 {
			queue = append(queue, v)
		}
	}
	rounds := 0
	for len(queue) > 0 {
		rounds++
		ready = ready[:0]
		for _, v := range queue {
			for _, w := range radj[rstart[v]:rstart[v+1]] {
				if missing[w]--; missing[w] == 0 {
					ready = append(ready, w)
				}
			}
		}
		queue, ready = ready, queue
	}
	sum := int(components) + int(layer[0]) + rounds
	for i := range int32(20) {
		seen := make([]bool, n)
		seen[i] = true
		queue = append(queue[:0], i)
		for len(queue) > 0 {
			v := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			sum++
			for _, w := range radj[rstart[v]:rstart[v+1]] {
				if !seen[w] {
					seen[w] = true
					queue = append(queue, w)
				}
			}
		}
	}
	return sum
}
