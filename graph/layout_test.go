package graph

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// randomLayers makes boxes in layers, with edges of which most lead to the layer
// below, some far down, and a few upwards.
func randomLayers(seed uint64, n, depth, perBox int) (layer []int32, edges [][2]int32) {
	rng := rand.New(rand.NewPCG(seed, 1))
	layer = make([]int32, n)
	for i := range layer {
		layer[i] = int32(float64(depth) * rng.Float64() * rng.Float64())
	}
	slices.Sort(layer)
	for i, l := range slices.Compact(slices.Clone(layer)) { // no layer is empty
		for j := range layer {
			if layer[j] == l {
				layer[j] = int32(i)
			}
		}
	}
	rng.Shuffle(n, func(i, j int) { layer[i], layer[j] = layer[j], layer[i] })
	for range n * perBox {
		a, b := int32(rng.IntN(n)), int32(rng.IntN(n))
		if rng.IntN(3) == 0 {
			b = int32(rng.IntN(min(n, 20))) // what everybody needs
		}
		if a != b && (layer[a] > layer[b] || rng.IntN(50) == 0) {
			edges = append(edges, [2]int32{a, b})
		}
	}
	return layer, edges
}

// checkGrid looks for boxes that are missing, in a wrong column or on top of
// each other, and for trunks that cross a box or each other.
func checkGrid(t *testing.T, g *grid, layer []int32, edges [][2]int32) {
	t.Helper()
	type cell struct{ col, row int32 }
	taken := map[cell]int{}
	for b := range layer {
		at := cell{g.col[b], g.row[b]}
		if at.col < 0 || int(at.col) >= g.columns || at.row < 0 || int(at.row) >= g.rows {
			t.Fatalf("box %d lies at %v, outside of %d columns and %d rows", b, at, g.columns, g.rows)
		}
		if other, ok := taken[at]; ok {
			t.Fatalf("boxes %d and %d both lie at %v", other, b, at)
		}
		taken[at] = b
		if band := g.bands[layer[b]]; at.col < band.first || at.col >= band.first+band.count {
			t.Fatalf("box %d of layer %d lies in column %d, and the layer has %v", b, layer[b], at.col, band)
		}
	}
	next := int32(0)
	for l, band := range g.bands {
		if band.first != next {
			t.Fatalf("layer %d begins at column %d, after column %d", l, band.first, next)
		}
		next += band.count
	}
	// An edge over several columns has a trunk between its ends.
	for _, e := range edges {
		from, to := g.col[e[0]], g.col[e[1]]
		low, high := min(from, to)+1, max(from, to)-1
		if trunk := g.trunk[e[1]]; low <= high && (trunk.first > low || trunk.last < high) {
			t.Fatalf("edge %v crosses columns %d to %d, and its trunk is %v", e, low, high, trunk)
		}
	}
	for b, trunk := range g.trunk {
		if trunk.empty() {
			continue
		}
		if gap := g.gap[b]; gap != g.row[b] && gap != g.row[b]+1 || g.lane[b] < 0 || g.lane[b] >= g.lanes[gap] || g.lane[b] >= maxLanes {
			t.Fatalf("box %d in row %d has its trunk in gap %d, lane %d of %d", b, g.row[b], gap, g.lane[b], g.lanes[gap])
		}
	}
}

func TestPlace(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		layer, edges := randomLayers(seed, 1+rng.IntN(400), 1+rng.IntN(12), rng.IntN(6))
		g := place(layer, edges)
		checkGrid(t, g, layer, edges)
	}
	if g := place(nil, nil); g.columns != 0 || g.rows != 0 {
		t.Errorf("nothing has %d columns and %d rows", g.columns, g.rows)
	}
}

// TestPlaceLanes tells trunks apart that run side by side, as long as a gap has
// lanes for them.
func TestPlaceLanes(t *testing.T) {
	// Three boxes in a row of one layer each, all needed from the far right.
	layer := []int32{0, 1, 2, 3, 4}
	edges := [][2]int32{{4, 0}, {4, 1}, {4, 2}}
	g := place(layer, edges)
	checkGrid(t, g, layer, edges)
	if g.gap[0] != g.gap[1] || g.lane[0] == g.lane[1] || g.lane[1] == g.lane[2] || g.lane[0] == g.lane[2] {
		t.Errorf("the trunks run in gaps %v on lanes %v, and should run side by side", g.gap, g.lane)
	}
}

// TestPlaceCrossings draws two ladders, given in the worst order, without a
// crossing.
func TestPlaceCrossings(t *testing.T) {
	var layer []int32
	var edges [][2]int32
	const width = 8
	for l := range int32(4) {
		for i := range int32(width) {
			layer = append(layer, l)
			if l > 0 {
				below := (l-1)*width + i*5%width // a permutation in each layer
				edges = append(edges, [2]int32{l*width + i, below})
			}
		}
	}
	g := place(layer, edges)
	for _, e := range edges {
		for _, f := range edges {
			if layer[e[0]] == layer[f[0]] && g.row[e[0]] < g.row[f[0]] && g.row[e[1]] > g.row[f[1]] {
				t.Errorf("edges %v and %v cross", e, f)
			}
		}
	}
}

func TestPlaceTwice(t *testing.T) {
	layer, edges := randomLayers(7, 2000, 12, 5)
	a, b := place(layer, edges), place(slices.Clone(layer), slices.Clone(edges))
	if !slices.Equal(a.col, b.col) || !slices.Equal(a.row, b.row) || !slices.Equal(a.gap, b.gap) || !slices.Equal(a.lane, b.lane) {
		t.Error("two runs gave different places")
	}
}

func TestIsotonic(t *testing.T) {
	for _, c := range []struct{ want, got []float64 }{
		{[]float64{0, 1, 2}, []float64{0, 1, 2}},
		{[]float64{2, 2, 2}, []float64{1, 2, 3}},
		{[]float64{5, 0}, []float64{2, 3}},
		{[]float64{-3, 9}, []float64{0, 9}},
		{[]float64{20, 20}, []float64{8, 9}},
	} {
		got := slices.Clone(c.want)
		isotonic(got, float64(10-len(got)))
		if !slices.Equal(got, c.got) {
			t.Errorf("isotonic(%v) = %v, want %v", c.want, got, c.got)
		}
	}
}

// BenchmarkLayout5000 draws 5,000 services with 25,000 needs, from their graph to
// the last lane; the goal is 0.2 s.
func BenchmarkLayout5000(b *testing.B) {
	g := largeFleet(b, 5000)
	cycles := g.Cycles()
	for b.Loop() {
		g.Picture(cycles)
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/0.2, "x-goal")
}
