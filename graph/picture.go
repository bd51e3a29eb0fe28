package graph

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Picture is where everything in a graph is drawn: a box for each component of
// the condensation, in the column of its layer, and within a component that has
// several services a picture of its own, which is seen once it is opened. The
// same graph gives the same picture.
//
// What is needed lies left of what needs it, so that recovery reads from left to
// right.
type Picture struct {
	cycles []Cycle
	graph  *Graph
	boxes  []box
	boxOf  []int32 // service → box
	outer  sheet
	edges  [][2]int32 // between boxes, the first needs the second; no repeats
	weight []int      // edges between services that each of them stands for
}

// box is a component: one service, or several that are drawn as one until the
// box is opened.
type box struct {
	services []int
	layer    int
	cyclic   bool
	cycles   []int // numbers of Cycles in it
	blocking bool  // one of them is, and is not waived
	waived   bool  // one of them is
	inner    *sheet
	edges    [][2]int32 // between members, by their place in services; no repeats
}

// sheet is a grid with its sizes in pixels.
type sheet struct {
	*grid
	colWidth []float64
	gutter   []float64 // left of each column, and after the last
	gapHigh  []float64 // of each gap
}

// Sizes in pixels, at which the writing can be read.
const (
	cellHeight = 36.0
	minGap     = 10.0
	laneHeight = 4.0
	minGutter  = 34.0
	maxGutter  = 120.0
	minColumn  = 110.0
	maxColumn  = 284.0
	nameWidth  = 7.25 // of a character of a name: 12 px in any monospaced font
	smallWidth = 5.6  // of a character of an owner: 10.5 px, without serifs, on average
	cellInset  = 38.0 // what of a cell's width is not writing
	innerPad   = 14.0
	innerHead  = 26.0
)

// Picture draws the graph. Cycles are what Cycles returned, which tells
// blocking components from others.
func (g *Graph) Picture(cycles *Cycles) *Picture {
	c := g.Condense()
	p := &Picture{graph: g, boxOf: make([]int32, len(g.services))}
	layers := make([]int32, 0, len(c.Components))
	for i, x := range c.Components {
		p.boxes = append(p.boxes, box{services: x.Services, layer: x.Layer, cyclic: x.Cyclic})
		layers = append(layers, int32(x.Layer))
		for _, s := range x.Services {
			p.boxOf[s] = int32(i)
		}
	}
	p.cycles = cycles.Cycles
	for i := range cycles.Cycles {
		cycle := &cycles.Cycles[i]
		if s, ok := g.Find(cycle.Services[0]); ok {
			b := &p.boxes[p.boxOf[s]]
			b.cycles = append(b.cycles, i)
			b.waived = b.waived || cycle.Waived
			b.blocking = b.blocking || cycle.Blocking && !cycle.Waived
		}
	}
	p.join()
	p.outer = newSheet(place(layers, p.edges), func(b int) (string, string) { return p.label(b) })
	for i := range p.boxes {
		if b := &p.boxes[i]; len(b.services) > 1 {
			s := newSheet(place(acyclic(len(b.services), b.edges), b.edges), func(m int) (string, string) {
				s := &g.services[b.services[m]]
				return s.Name, s.Owner
			})
			b.inner = &s
		}
	}
	return p
}

// join collects the edges between boxes and those within.
func (p *Picture) join() {
	member := make([]int32, len(p.boxOf))
	for i := range p.boxes {
		for m, s := range p.boxes[i].services {
			member[s] = int32(m)
		}
	}
	var all [][2]int32
	for s := range p.boxOf {
		from := p.boxOf[s]
		for _, n := range p.graph.Needs(s) {
			if to := p.boxOf[n]; to != from {
				all = append(all, [2]int32{from, to})
			} else if n != s {
				b := &p.boxes[from]
				b.edges = append(b.edges, [2]int32{member[s], member[n]})
			}
		}
	}
	slices.SortFunc(all, func(a, b [2]int32) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	for i, e := range all {
		if i == 0 || e != all[i-1] {
			p.edges, p.weight = append(p.edges, e), append(p.weight, 0)
		}
		p.weight[len(p.weight)-1]++
	}
}

// label returns what is written in a box, in two lines.
func (p *Picture) label(i int) (name, below string) {
	b := &p.boxes[i]
	first := &p.graph.services[b.services[0]]
	if len(b.services) > 1 {
		return p.name(i), b.sort()
	}
	below = first.Owner
	if b.cyclic {
		below = strings.TrimPrefix(below+" · needs itself", " · ")
	}
	return first.Name, below
}

// name is that of a box with several services.
func (p *Picture) name(i int) string {
	b := &p.boxes[i]
	name := p.graph.services[b.services[0]].Name + ", " + p.graph.services[b.services[1]].Name
	if more := len(b.services) - 2; more > 0 {
		name += ", +" + count(more)
	}
	return name
}

// sort says what kind of component a box is.
func (b *box) sort() string {
	n := count(len(b.services))
	switch {
	case !b.cyclic:
		return n + " services, entwined"
	case len(b.services) == 1:
		return "needs itself"
	case b.blocking:
		return "cycle of " + n + ", blocking"
	case len(b.cycles) == 0:
		return "cycle of " + n
	case b.waived:
		return "cycle of " + n + ", waived"
	}
	return "cycle of " + n + ", not blocking"
}

// count writes a number with commas.
func count(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return count(n/1000) + "," + strconv.Itoa(1000 + n%1000)[1:]
}

// acyclic gives boxes layers although they need each other in cycles: a few
// edges run upwards. It is the heuristic of Eades, Lin and Smyth ("A fast and
// effective heuristic for the feedback arc set problem", 1993), then longest
// paths.
func acyclic(n int, edges [][2]int32) []int32 {
	out := adjacent(n, len(edges), func(i int) (int32, int32) { return edges[i][0], edges[i][1] })
	in := adjacent(n, len(edges), func(i int) (int32, int32) { return edges[i][1], edges[i][0] })
	outs, ins := make([]int32, n), make([]int32, n)
	for b := range int32(n) {
		outs[b], ins[b] = int32(len(out.of(b))), int32(len(in.of(b)))
	}
	widest := 0
	for b := range n {
		widest = max(widest, int(outs[b]), int(ins[b]))
	}
	// What needs nobody that is left comes first, what nobody left needs last,
	// else who is needed most beyond its own needs.
	buckets := make([][]int32, 2*widest+2)
	bucket := func(b int32) int {
		if ins[b] == 0 || outs[b] == 0 {
			return len(buckets) - 1
		}
		return int(ins[b]-outs[b]) + widest
	}
	gone := make([]bool, n)
	put := func(b int32) { buckets[bucket(b)] = append(buckets[bucket(b)], b) }
	var low, high []int32 // high is reversed
	take := func(b int32) {
		gone[b] = true
		for _, o := range out.of(b) {
			if ins[o]--; !gone[o] {
				put(o)
			}
		}
		for _, o := range in.of(b) {
			if outs[o]--; !gone[o] {
				put(o)
			}
		}
	}
	for b := range int32(n) {
		put(b)
	}
	for left := n; left > 0; left-- {
		var pick int32 = -1
		for k := len(buckets) - 1; k >= 0 && pick < 0; k-- {
			for len(buckets[k]) > 0 {
				b := buckets[k][0]
				if gone[b] || bucket(b) != k {
					buckets[k] = buckets[k][1:]
					continue
				}
				pick = b
				break
			}
		}
		if outs[pick] > 0 && ins[pick] == 0 {
			high = append(high, pick)
		} else {
			low = append(low, pick)
		}
		take(pick)
	}
	slices.Reverse(high)
	rank := make([]int32, n)
	order := append(low, high...)
	for i, b := range order {
		rank[b] = int32(i)
	}
	layer := make([]int32, n)
	for _, b := range order {
		for _, o := range out.of(b) {
			if rank[o] < rank[b] {
				layer[b] = max(layer[b], layer[o]+1)
			}
		}
	}
	return layer
}

// newSheet measures a grid; label has the two lines of each box.
func newSheet(g *grid, label func(int) (string, string)) sheet {
	s := sheet{grid: g, colWidth: make([]float64, g.columns), gutter: make([]float64, g.columns+1), gapHigh: make([]float64, g.rows+1)}
	for b := range g.col {
		name, below := label(b)
		w := cellInset + max(nameWidth*float64(utf8.RuneCountInString(name)), smallWidth*float64(utf8.RuneCountInString(below)))
		c := g.col[b]
		s.colWidth[c] = max(s.colWidth[c], min(max(math.Ceil(w), minColumn), maxColumn))
	}
	for c, n := range g.turns {
		s.gutter[c] = math.Ceil(min(minGutter+1.6*float64(n), maxGutter))
	}
	for i, n := range g.lanes {
		s.gapHigh[i] = minGap + laneHeight*max(float64(n)-1, 0)
	}
	return s
}

// points are the places of a sheet's columns and rows when none is hidden or
// opened.
type points struct {
	x, y          []float64 // left of each column, top of each row
	gapY          []float64 // top of each gap
	width, height float64
}

func (s *sheet) points() points {
	var p points
	x := s.gutter[0]
	for c := range s.columns {
		p.x = append(p.x, x)
		x += s.colWidth[c] + s.gutter[c+1]
	}
	y := 0.0
	for r := range s.rows + 1 {
		p.gapY = append(p.gapY, y)
		y += s.gapHigh[r]
		if r < s.rows {
			p.y = append(p.y, y)
			y += cellHeight
		}
	}
	p.width, p.height = x, y
	return p
}

// laneY is the height of a box's trunk.
func (s *sheet) laneY(p *points, b int32) float64 {
	gap := s.gap[b]
	return p.gapY[gap] + minGap/2 + laneHeight*float64(s.lane[b])
}
